"""Answers that were paid for are found again: what makes two requests the same may not drift."""

import pytest
from pydantic import SecretStr

from potstill.models.endpoint import EndpointModel
from potstill.models.fingerprint import request_fingerprint
from potstill.teach.outcomes import request_key
from potstill.types import Message, Sampling

MESSAGES = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Où est mon colis ? 📦"),
)
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3, stop=("\n",))
URL = "http://127.0.0.1:9/v1"


def fingerprint(model):
    return request_fingerprint(model.identity, MESSAGES, SAMPLING)


def test_the_fingerprint_of_a_request_is_what_it_has_always_been():
    """Whoever changes these two has every kept answer asked, and paid, again."""
    found = request_fingerprint("http://127.0.0.1:9/v1 fake", MESSAGES, SAMPLING)
    assert found == "dbec6df291edc32b4a4be2da56d66d6c"
    assert request_key("row-7", 1, 2, found).hex() == "873446740c922f222fc83040f773cd64"


@pytest.mark.parametrize(
    "settings",
    [
        {"key": SecretStr("sk-other")},
        {"name": "another label"},
        {"max_in_flight": 3},
        {"timeout_seconds": 7},
        {"requests_per_minute": 60},
    ],
)
def test_how_a_request_is_sent_is_no_part_of_it(settings):
    assert fingerprint(EndpointModel(URL, "m", **settings)) == fingerprint(EndpointModel(URL, "m"))


@pytest.mark.parametrize("other", [(URL, "n"), ("http://127.0.0.1:8/v1", "m")])
def test_another_model_is_another_request(other):
    assert fingerprint(EndpointModel(*other)) != fingerprint(EndpointModel(URL, "m"))


@pytest.mark.parametrize("field", Sampling.model_fields)
def test_every_way_to_draw_is_part_of_it(field):
    value = getattr(SAMPLING, field)
    other = (*value, "x") if isinstance(value, tuple) else value + 1
    changed = SAMPLING.model_copy(update={field: other})
    assert request_fingerprint("m", MESSAGES, changed) != request_fingerprint(
        "m", MESSAGES, SAMPLING
    )
