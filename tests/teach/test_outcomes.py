"""An outcome as a line of JSON, which is written faster than pydantic does and reads the same."""

import pytest
from teach.keeper import outcome

from potstill.teach.outcomes import line_of, response_of
from potstill.types import Logprobs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": 'ä日\u2028\x07"\\/\t' * 3, "seconds": 1e-7, "cost": 0.1 + 0.2, "turn": 2},
        {"text": "", "finish_reason": "error", "error": "other: no", "num_unread": 3},
        {"logprobs": Logprobs(k=1, sampled=b"s", ids=b"\xff", values=b"v", tail=b"t")},
    ],
)
def test_a_line_is_what_pydantic_writes_without_defaults(changes):
    response = outcome(3).model_copy(update=changes)
    line = line_of(response)
    assert line == response.model_dump_json(exclude_defaults=True).encode() + b"\n"
    assert response_of(line) == response
