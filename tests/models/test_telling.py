"""Text that is told while it comes is never taken back, and adds up to the answer."""

import asyncio

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer

from potstill.models.local import LocalModel
from potstill.models.telling import Teller
from potstill.types import Message, Record, Sampling

ASK = Record(id="a", messages=(Message(role="user", content="Where is my order?"),))


def told(texts, stops=()):
    pieces = []
    teller = Teller(pieces.append, stops)
    for text in texts[:-1]:
        teller.add(text, is_whole=False)
    teller.add(texts[-1], is_whole=True)
    return pieces


@pytest.mark.parametrize("text", ["हाँ, तीस दिनों के भीतर।", "नमस्ते 👩🏽‍🚀!", "plain"])
def test_a_character_is_told_when_its_last_byte_is_there(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = told([tokenizer.decode(ids[: n + 1]) for n in range(len(ids))])
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_what_stays_no_character_is_told_at_the_end():
    assert told(["a\N{REPLACEMENT CHARACTER}", "a\N{REPLACEMENT CHARACTER}"]) == [
        "a",
        "\N{REPLACEMENT CHARACTER}",
    ]


def test_the_beginning_of_a_stop_sequence_is_kept_back_until_it_is_none():
    stops = ("END", "###")
    assert told(["a", "aE", "aEN", "aENX", "aENX#", "aENX"], stops) == ["a", "ENX"]


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_of_random_weights_add_up_to_their_answer(tmp_path, seed):
    torch.set_num_threads(1)

    async def main():
        model = LocalModel(tiny_llama(tmp_path / "m", seed=seed), dtype="float32", batch_size=2)
        sampling = Sampling(max_new_tokens=40, temperature=1.2, seed=seed, stop=("a", "st"))
        pieces = []
        try:
            found = await model.stream(ASK, sampling, lambda: None, on_text=pieces.append)
            return found, await model.respond(ASK, sampling), pieces
        finally:
            await model.close()

    streamed, whole, pieces = asyncio.run(main())
    assert "".join(pieces) == streamed.text == whole.text
