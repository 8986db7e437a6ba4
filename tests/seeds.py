"""The random choices of the fault tests, which `make faults SEED=…` repeats."""

from __future__ import annotations

import os
import random

import pytest

SEED = int(os.environ.get("POTSTILL_FAULTS_SEED") or 0)
"""0 in the fast suite; `make faults` draws another one each time, and prints it."""

LARGE = (pytest.mark.slow, pytest.mark.faults)
"""What only `make faults` and `make test-all` run."""


def chance(*what: object) -> random.Random:
    """Random numbers of one test, printed so that a failure can be repeated."""
    print(f"repeat with: make faults SEED={SEED}; random numbers for {what}")
    return random.Random(f"{SEED} {what}")


def sizes(small: int, large: int) -> object:
    """A test in two sizes."""
    return pytest.mark.parametrize("num", [small, pytest.param(large, marks=LARGE)])
