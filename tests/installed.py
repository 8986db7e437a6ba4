"""What a test needs that a user may not have installed."""

import pytest

from potstill.models.embedded import is_installed


def needs_engine(kind: str) -> None:
    """Skips the test where the engine of such folders (ctranslate2, onnx) is not installed.

    `make test` installs both.
    """
    if not is_installed(kind):
        pytest.skip(f'no engine for it here: pip install "potstill[{kind}]"')
