"""`python -m potstill.cli` is the `potstill` command."""

from potstill.cli import main

main()
