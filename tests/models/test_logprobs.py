"""An answer's log-probabilities lose nothing that counts on their way into few bytes."""

import base64
import json

import numpy as np
import pytest

from potstill.models.chat_format import NotAnAnswer, read_answer
from potstill.models.logprobs import logprob_arrays, num_told, read_logprobs
from potstill.types import Response

RNG = np.random.default_rng(0)


def told(n=5, k=4, *, name):
    """What a server tells of n positions: k ranked entries each, called as `name` says."""
    positions = []
    for row in RNG.dirichlet(np.ones(3 * k), size=n):
        ids = np.argsort(-row)[:k]
        entries = [{**name(int(i)), "logprob": float(np.log(row[i]))} for i in ids]
        positions.append({**entries[0], "top_logprobs": entries})
    return {"content": positions}


def by_id(i):
    return {"id": i, "token": f"t{i}", "bytes": [116]}


def by_token_id(i):
    return {"token": f"token_id:{i}", "bytes": list(f"token_id:{i}".encode())}


def by_bytes(i):
    return {"token": "?", "bytes": [200, i]}


@pytest.mark.parametrize("name", [by_id, by_token_id])
def test_ids_of_the_model_are_kept_where_the_server_tells_them(name):
    tree = told(name=name)
    arrays = logprob_arrays(read_logprobs(tree, 4))
    wanted = [[e["logprob"] for e in p["top_logprobs"]] for p in tree["content"]]
    ids = [
        [e.get("id", e["token"].removeprefix("token_id:")) for e in p["top_logprobs"]]
        for p in tree["content"]
    ]
    np.testing.assert_array_equal(arrays.ids_NK, np.array(ids, int))
    np.testing.assert_array_equal(arrays.sampled_N, arrays.ids_NK[:, 0])
    np.testing.assert_allclose(arrays.logprobs_NK, wanted, rtol=2**-11)
    np.testing.assert_allclose(arrays.tail_N, 1 - np.exp(wanted).sum(-1), atol=1e-6)


def test_elsewhere_ids_count_the_tokens_bytes():
    tree = told(name=by_bytes)
    logprobs = read_logprobs(tree, 4)
    arrays = logprob_arrays(logprobs)
    spelled = [[logprobs.tokens[i] for i in row] for row in arrays.ids_NK]
    wanted = [[bytes(e["bytes"]).hex() for e in p["top_logprobs"]] for p in tree["content"]]
    assert spelled == wanted
    assert len(set(logprobs.tokens)) == len(logprobs.tokens)


def test_entries_are_ranked_again_cut_at_k_and_filled_up():
    entries = [{**by_id(i), "logprob": value} for i, value in enumerate([-9999.0, -0.2, -2.0])]
    sampled = {**by_id(0), "logprob": -9999.0}
    tree = {
        "content": [
            {**sampled, "top_logprobs": [*entries, {**by_id(9), "logprob": None}]},
            {**sampled, "top_logprobs": []},
        ]
    }
    arrays = logprob_arrays(read_logprobs(tree, 2))
    assert arrays.ids_NK.tolist() == [[1, 2], [-1, -1]]
    assert arrays.logprobs_NK[1].tolist() == [-np.inf, -np.inf]
    np.testing.assert_allclose(arrays.tail_N, [1 - np.exp(-0.2) - np.exp(-2.0), 1.0], atol=1e-6)
    floor = logprob_arrays(read_logprobs(tree, 3)).logprobs_NK[0, 2]
    assert floor == -60


def test_300_positions_of_20_tokens_are_a_tenth_of_their_json():
    tree = told(300, 20, name=by_id)
    logprobs = read_logprobs(tree, 20)
    parts = (logprobs.sampled, logprobs.ids, logprobs.values, logprobs.tail)
    assert sum(map(len, parts)) == 300 * (4 * 20 + 8)
    line = Response(record_id="r", text="x", finish_reason="stop", logprobs=logprobs)
    assert len(line.model_dump_json()) < 0.15 * len(json.dumps(tree))


def test_a_response_with_log_probabilities_survives_its_line_of_json():
    logprobs = read_logprobs(told(name=by_bytes), 4, mode="raw")
    response = Response(record_id="r", text="x", finish_reason="stop", logprobs=logprobs)
    again = Response.model_validate_json(response.model_dump_json())
    assert again == response and again.logprobs.mode == "raw"


@pytest.mark.parametrize(
    "entry",
    [
        {"id": 2**40, "logprob": -1.0},
        {"id": 1, "logprob": 10**400},
        {"id": 1},
        {"token": "token_id:x", "logprob": -1.0},
        {"token": "x", "bytes": [999], "logprob": -1.0},
        {"token": None, "logprob": -1.0},
        ["odd"],
        "odd",
    ],
)
def test_another_form_is_no_answer(entry):
    position = {**entry, "top_logprobs": [entry]} if isinstance(entry, dict) else entry
    choice = {"message": {"content": "x"}, "logprobs": {"content": [position]}}
    with pytest.raises(NotAnAnswer, match="of an unknown form"):
        read_answer({"choices": [{**choice, "finish_reason": "stop"}]}, top_logprobs=2)


@pytest.mark.parametrize("tree", [None, {}, {"content": None}, {"content": []}, "odd"])
def test_nothing_told_is_none(tree):
    assert read_logprobs(tree, 3) is None


@pytest.mark.parametrize("largest", [0xFFFE, 0xFFFF, 2**20])
def test_an_id_of_any_size_comes_back_and_what_was_not_told_stays_so(largest):
    entries = [{**by_id(i), "logprob": -0.5 - i} for i in (0, largest)]
    tree = {"content": [{**entries[0], "top_logprobs": e} for e in (entries, entries[:1])]}
    logprobs = read_logprobs(tree, 2)
    assert logprob_arrays(logprobs).ids_NK.tolist() == [[0, largest], [0, -1]]
    assert len(logprobs.ids) == (8 if largest < 0xFFFF else 16)
    assert (num_told(logprobs), num_told(None)) == (2, 0)


def test_a_ledger_from_before_ids_were_short_is_still_read():
    def packed(numbers, kind):
        return base64.b64encode(np.array(numbers, kind).tobytes()).decode()

    line = {
        "record_id": "r", "text": "x", "finish_reason": "stop",
        "logprobs": {
            "k": 2, "sampled": packed([7], "<i4"), "ids": packed([7, -1], "<i4"),
            "values": packed([-0.5, -np.inf], "<f2"), "tail": packed([0.25], "<f4"), "mode": "raw",
        },
    }  # fmt: skip
    logprobs = Response.model_validate_json(json.dumps(line)).logprobs
    assert logprob_arrays(logprobs).ids_NK.tolist() == [[7, -1]]
    assert (logprobs.temperature, logprobs.vocab_fingerprint, logprobs.has_end) == (1, None, None)
