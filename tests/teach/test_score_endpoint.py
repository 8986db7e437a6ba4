"""Rows go to a server only where it means the same ids; what it told is kept whatever follows."""

import asyncio

import numpy as np
import pytest
from tiny import tiny_tokenizer

from potstill.data.render import (
    render,
    render_prompt,
    rendered_text,
    template_fingerprint,
    vocab_fingerprint,
)
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.logprobs import LogprobArrays
from potstill.targets.store import TargetSettings, TargetStore, TargetWriter, content_key
from potstill.teach.score_endpoint import score_at_endpoint
from potstill.types import Message

TOKENIZER = tiny_tokenizer()
V = len(TOKENIZER)
ANSWERS = ("Yes, thirty days.", "No.", "9 are left.")


class Scorer:
    """A server that says the token itself with 0.5, then others; or fails as it is told."""

    def __init__(self, *, fails=None, other_prompt=False, other_text=False, price=None, outside=()):
        self.fails, self.price, self.outside = fails or {}, price, outside
        self.other_prompt, self.other_text = other_prompt, other_text
        self.asked = []

    async def tokens_of(self, messages):
        return render_prompt(TOKENIZER, messages)[self.other_prompt :]

    async def tokens_in(self, text):
        return self._ids(text)[self.other_text :]

    def _ids(self, text):
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    def cost_of(self, num_tokens):
        return None if self.price is None else self.price * num_tokens

    async def score_tokens(self, ids, k, *, start):
        self.asked.append(list(ids))
        for _ in range(len(self.fails)):
            await asyncio.sleep(0)
        for answer, error in self.fails.items():
            if TOKENIZER.decode(ids[start:-1]).strip() == answer:
                raise error
        own = np.array(ids[start:])
        others = [[*self.outside, *(o for o in range(20, 40) if o != id_)][: k - 1] for id_ in own]
        ids_NK = np.hstack([own[:, None], others])
        logprobs_NK = np.log(np.tile(0.5 ** np.arange(1, k + 1), (len(own), 1)))
        return LogprobArrays(own, ids_NK, logprobs_NK, np.full(len(own), 0.5**k))


@pytest.fixture
def case(tmp_path):
    """A writer, and rows with their texts by key."""
    settings = TargetSettings(
        vocab_fingerprint=vocab_fingerprint(TOKENIZER), vocab_size=V, k=4, temperatures=(1.0,),
        template_fingerprint=template_fingerprint(TOKENIZER), teacher="t",
    )  # fmt: skip
    prompt = (Message(role="user", content="How many?"),)
    rows, texts = {}, {}
    for answer in ANSWERS:
        row = render(TOKENIZER, prompt, answer)
        key = content_key(row.ids, row.loss_mask)
        rows[key], texts[key] = row, (prompt, answer)
    return TargetWriter(tmp_path / "targets", settings), rows, texts


def score(case, scorer, **settings):
    writer, rows, texts = case
    return asyncio.run(score_at_endpoint(writer, scorer, rows, texts, TOKENIZER, **settings))


def store_of(writer):
    writer.finish()
    return TargetStore(
        writer.path,
        vocab_fingerprint=writer.settings.vocab_fingerprint,
        template_fingerprint=writer.settings.template_fingerprint,
        temperature=1.0,
    )


def test_the_text_of_a_row_is_what_its_ids_spell():
    prompt = (Message(role="system", content="Be kind."), Message(role="user", content="हाँ?"))
    row = render(TOKENIZER, prompt, "Yes.")
    text = rendered_text(TOKENIZER, prompt, "Yes.")
    assert TOKENIZER(text, add_special_tokens=False)["input_ids"] == row.ids


def test_scored_rows_are_in_the_store_with_their_end_and_told_as_they_come(case):
    seen = []
    left = score(case, Scorer(), on_progress=lambda done, total: seen.append((done, total)))
    writer, rows, _ = case
    store = store_of(writer)
    for key, row in rows.items():
        ids, logprobs = store.lookup(key)
        own = ids[np.arange(len(ids)), logprobs.argmax(-1)]
        assert own.tolist() == row.ids[row.loss_mask.index(1) :]
        np.testing.assert_allclose(np.exp(logprobs.max(-1)), 0.5, atol=0.02)
    assert left == (0, 0, ()) and seen == [(1, 3), (2, 3), (3, 3)]


def test_ids_beyond_the_students_vocabulary_are_left_out_and_counted(case):
    score(case, Scorer(outside=(V + 2,)))
    writer, rows, _ = case
    assert writer.finish().mass_dropped == pytest.approx(0.25, rel=1e-3)  # the mean
    shard = np.concatenate([store_of(writer).lookup(key)[0].ravel() for key in rows])
    assert shard.max() < V


@pytest.mark.parametrize("other", ["other_prompt", "other_text"])
def test_a_row_that_the_server_writes_otherwise_is_not_sent(case, other):
    scorer = Scorer(**{other: True})
    assert score(case, scorer) == (3, 0, ())
    assert scorer.asked == [] and not any(key in case[0] for key in case[1])


def test_a_row_that_fails_is_told_and_the_others_are_scored(case):
    left = score(case, Scorer(fails={"No.": TeacherError("status 400: too long")}))
    assert left.failures == ("status 400: too long",)
    assert sum(key in case[0] for key in case[1]) == 2


def test_what_came_before_a_refusal_is_kept_and_not_asked_again(case):
    with pytest.raises(TeacherRefused, match="no such model"):
        score(case, Scorer(fails={"9 are left.": TeacherRefused("no such model")}))
    writer, rows, texts = case
    again = TargetWriter(writer.path, writer.settings)
    assert sum(key in again for key in rows) == 2
    scorer = Scorer()
    assert score((again, rows, texts), scorer) == (0, 0, ())
    assert len(scorer.asked) == 1


def test_no_more_is_spent_than_may_be(case):
    lengths = sorted(len(row.ids) for row in case[1].values())
    scorer = Scorer(price=1.0)
    left = score(case, scorer, most_cost=sum(lengths) - 1)
    assert left.num_unaffordable == 1 and sum(map(len, scorer.asked)) < sum(lengths)


def test_a_server_that_tells_too_few_gives_no_targets(case):
    class Few(Scorer):
        async def score_tokens(self, ids, k, *, start):
            return await super().score_tokens(ids, 2, start=start)

    left = score(case, Few())
    assert len(left.failures) == 3 and "tells fewer than 4" in left.failures[0]
