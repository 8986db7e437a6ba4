"""Extensions are found by short name or by "module:attribute"; everything else is explained."""

import pytest

from potstill.errors import ConfigError
from potstill.protocols import resolve


def test_an_extension_of_somebody_else_is_found():
    assert resolve("check", "os.path:basename")("a/b") == "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("finishd", "did you mean finished?"),
        ("nothing like it", 'or give your own as "module:attribute"'),
        ("no.such.module:thing", "cannot be imported"),
        ("os.path:nothing", "cannot be imported"),
    ],
)
def test_an_unknown_name_is_explained(name, message):
    with pytest.raises(ConfigError) as caught:
        resolve("check", name)
    assert message in str(caught.value)
