"""The student learns the probabilities that came with the answers; only the rest is computed."""

import asyncio
import json
import random
import re

import numpy as np
import pytest
import torch
from fake_endpoint import FakeEndpoint, FakeVllm, TellingEndpoint, serving
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import parse_config
from potstill.data.render import render, template_fingerprint, vocab_fingerprint
from potstill.errors import ConfigError, DataError, TeacherRefused
from potstill.models.local import LocalModel
from potstill.pipeline.story import distill
from potstill.rundir import RunDir, read_jsonl
from potstill.targets.store import TargetStore, content_key
from potstill.teach.score import score
from potstill.types import Record

ANSWERS = (
    "It will arrive on Monday.", "Yes, thirty days.", "No.", "9 are left.",
    "The answer is ten.", "A refund takes days.", "The old man reads.", "हाँ",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher with opinions, and a student of its vocabulary without."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("models")
    teacher = AutoModelForCausalLM.from_pretrained(tiny_llama(place / "teacher", seed=5))
    with torch.no_grad():
        teacher.lm_head.weight *= 20
    teacher.save_pretrained(place / "teacher")
    return place / "teacher", tiny_llama(place / "student", layers=1, seed=6)


@pytest.fixture
def case(folders, tmp_path):
    """A telling teacher, a config that learns from it, and the run's folder."""
    questions = ["".join(random.Random(n).choices("abcdefghij klmn opq", k=40)) for n in range(8)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    teacher = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[0])

    def telling(*, kind=TellingEndpoint, **settings):
        answers = dict(zip(questions, ANSWERS, strict=True))
        return kind(teacher, tokenizer, lambda text: answers.get(text, "Yes."), **settings)

    def config(fake, **changes):
        tree = {
            "name": "faq",
            "task": "conversation",
            "teacher": {"url": fake.url, "model": "fake", "logprobs_mode": "raw"},
            "student": str(folders[1]),
            "train_data": str(file),
            "data": {"validation": 0.25},
            "checks": ["finished"],
            "loss": {"kind": "forward_kl", "sft_weight": 0.0, "targets": {"k": 6}},
            "train": {"max_steps": 8, "batch_size": 8, "precision": "fp32", "learning_rate": 1e-2},
        }
        for name, value in changes.items():
            tree[name] = {**tree[name], **value} if isinstance(tree.get(name), dict) else value
        return parse_config(tree)

    return telling, config, RunDir(tmp_path / "run")


def run_with(fake, config, run, *, stop_after="train", again=None, **changes):
    """Distils from a server; returns the events of the only run, or of a second one.

    Args:
        again: What is changed for a second run.
    """

    async def main():
        async with serving(fake):
            for tree in [changes, *([] if again is None else [{**changes, **again}])]:
                events = []
                fake.bodies.clear()
                settings = config(fake, **tree)
                await asyncio.to_thread(
                    distill, settings, run, on_event=events.append, stop_after=stop_after
                )
        return events

    return asyncio.run(main())


def store_of(run, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TargetStore(
        run.targets,
        vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        temperature=1.0,
    )


def scored(folder, run, k):
    """What the teacher's weights say of the accepted rows, and the rows' keys."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = [*read_jsonl(run.accepted, Record), *read_jsonl(run.accepted_validation, Record)]
    rows = [render(tokenizer, record.messages, record.reference) for record in records]
    teacher = LocalModel(folder, dtype="float32")
    other = RunDir(run.path / "scored")
    score(teacher, rows, other.targets, k=k, temperature=1.0,
          student_vocab_fingerprint=teacher.vocab_fingerprint)  # fmt: skip
    asyncio.run(teacher.close())
    return store_of(other, folder), [content_key(row.ids, row.loss_mask) for row in rows]


@pytest.mark.parametrize("form", ["bytes", "token_id", "id"])
def test_a_student_learns_the_probabilities_that_an_endpoint_tells(case, folders, form):
    telling, config, run = case
    fake = telling(form=form)
    run_with(fake, config, run)
    assert {body.get("top_logprobs") for body in fake.bodies} == {6}
    facts = run.facts("score")
    assert (facts["num_kept"], facts["num_missing"], facts["mass_dropped"]) == (8, 0, 0.0)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[-1]["train/forward_kl_nats"] < lines[0]["train/forward_kl_nats"]
    assert "validation/forward_kl_nats" in lines[-1]
    ours = store_of(run, folders[1])
    theirs, keys = scored(folders[0], run, k=6)
    for key in keys:
        (ids, told), (wanted_ids, wanted) = ours.lookup(key), theirs.lookup(key)
        last = len(ids) - (form == "bytes")  # whose end token is certain
        places, wanted_places = ids[:last].argsort(-1), wanted_ids[:last].argsort(-1)
        np.testing.assert_array_equal(
            np.take_along_axis(ids[:last], places, -1),
            np.take_along_axis(wanted_ids[:last], wanted_places, -1),
        )
        np.testing.assert_allclose(  # values are kept in steps of an eighth
            np.take_along_axis(told[:last], places, -1),
            np.take_along_axis(wanted[:last], wanted_places, -1),
            atol=0.15,
        )
        assert form != "bytes" or np.exp(told[-1]).max() == 1.0


def test_rows_without_probabilities_are_named_and_not_learned(case):
    telling, config, run = case
    fake = telling()
    whole = fake.spell
    odd = "The old man reads."
    fake.spell = lambda text: [i for c in text for i in whole(c)] if text == odd else whole(text)
    events = run_with(fake, config, run, data={"validation": 0})
    facts = run.facts("score")
    assert (facts["num_kept"], facts["reasons"]) == (7, {"other_tokens": 1})
    (note,) = [e.text for e in events if e.stage == "score" and e.kind == "note"]
    assert note.startswith("1 of 8 accepted answers have no probabilities to learn from: 1 are ")
    assert run.facts("train")["num_rows"] == 7


def test_a_run_that_would_learn_from_too_few_is_refused_with_the_reasons(case):
    telling, config, run = case
    fake = telling()
    whole = fake.spell
    fake.spell = lambda text: [i for c in text for i in whole(c)]
    with pytest.raises(DataError, match=r"of 8 accepted answers.*other tokens.*loss\.kind: sft"):
        run_with(fake, config, run)
    assert not run.model.exists()


def letter_by_letter(fake, *, but=()):
    """Makes a teacher write its answers (but "No.") with other tokens than the student would."""
    whole = fake.spell
    fake.spell = lambda text: whole(text) if text in but else [i for c in text for i in whole(c)]
    return fake


def test_answers_that_do_not_fit_are_scored_by_a_server_that_can_and_learned(case, folders):
    telling, config, run = case
    fake = letter_by_letter(telling(kind=FakeVllm), but=ANSWERS[:3])
    events = run_with(fake, config, run)
    facts = run.facts("score")
    assert (facts["num_kept"], facts["num_scored"], facts["num_missing"]) == (3, 5, 0)
    assert facts["num_prompt_tokens"] == sum(len(body["prompt"]) for body in fake.scored[1:])
    assert {(body["max_tokens"], body["prompt_logprobs"]) for body in fake.scored} == {(1, 6)}
    assert not [e.text for e in events if e.stage == "score" and e.kind == "note"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[-1]["train/forward_kl_nats"] < lines[0]["train/forward_kl_nats"]
    ours = store_of(run, folders[1])
    theirs, keys = scored(folders[0], run, k=6)
    for key in keys:
        (ids, told), (wanted_ids, wanted) = ours.lookup(key), theirs.lookup(key)
        places, wanted_places = ids.argsort(-1), wanted_ids.argsort(-1)
        np.testing.assert_array_equal(
            np.take_along_axis(ids, places, -1), np.take_along_axis(wanted_ids, wanted_places, -1)
        )
        np.testing.assert_allclose(  # values are kept in steps of an eighth
            np.take_along_axis(told, places, -1),
            np.take_along_axis(wanted, wanted_places, -1),
            atol=0.15,
        )


def test_a_server_that_leaves_prompt_logprobs_unread_is_not_asked_to_score(case):
    telling, config, run = case
    fake = letter_by_letter(telling(kind=FakeVllm, tells=False))
    with pytest.raises(DataError, match=r"7 of 8 accepted answers.*other tokens.*behind vLLM"):
        run_with(fake, config, run)
    assert len(fake.scored) == 1  # the probe
    other = letter_by_letter(telling(kind=FakeVllm, tells=False), but=ANSWERS[1:])
    run_with(other, config, run, data={"validation": 0}, stop_after="score")
    facts = run.facts("score")
    assert (facts["num_kept"], facts["num_scored"], facts["num_missing"]) == (7, 0, 1)


def test_a_server_that_writes_a_row_in_other_ids_is_not_asked_for_it(case):
    telling, config, run = case
    fake = letter_by_letter(telling(kind=FakeVllm), but=ANSWERS[3:])
    fake.rewrite = lambda ids: ids if len(ids) < 40 else [*ids[:-2], ids[-1]]
    events = run_with(fake, config, run, data={"validation": 0}, stop_after="score")
    facts = run.facts("score")
    assert (facts["num_scored"], facts["reasons"]) == (0, {"other_tokens": 2})
    notes = [e.text for e in events if e.stage == "score" and e.kind == "note"]
    assert notes[0].startswith("not scored by the endpoint: 2 are written with other tokens by ")
    assert len(fake.scored) == 1


def test_scores_that_came_before_an_interruption_are_not_asked_again(case):
    telling, config, run = case
    fake = letter_by_letter(telling(kind=FakeVllm, most_scores=1 + 3))  # the probe, and three

    async def main():
        async with serving(fake):
            settings = config(fake)
            with pytest.raises(TeacherRefused, match="401"):
                await asyncio.to_thread(distill, settings, run, stop_after="score")
            fake.scored.clear()
            fake.most_scores = None
            await asyncio.to_thread(distill, settings, run, stop_after="score")

    asyncio.run(main())
    assert len(fake.scored) == 1 + 7 - 3
    assert run.facts("score")["num_scored"] == 7


def test_answers_and_scores_together_cost_no_more_than_may_be_spent(case):
    telling, config, run = case
    fake = letter_by_letter(telling(kind=FakeVllm), but=ANSWERS[4:])
    teacher = {"price": {"input": 1.0, "output": 0.0}}
    most = {"max_cost": 1.8e-4}
    changes = {"data": {"validation": 0}, "teacher": teacher, "generation": most}
    events = run_with(fake, config, run, stop_after="score", **changes)
    facts = run.facts("score")
    assert 0 < facts["num_scored"] < 3
    assert run.facts("teach")["cost"] + facts["cost"] <= 1.8e-4
    notes = [e.text for e in events if e.stage == "score" and e.kind == "note"]
    assert "would cost more than generation.max_cost allows" in notes[0]


@pytest.mark.parametrize(
    ("again", "num_asked", "kind"),
    [({}, 0, "skipped"), ({"loss": {"targets": {"k": 7}}}, 8, "done")],
)
def test_a_second_run_asks_again_only_for_more_than_was_told(case, again, num_asked, kind):
    telling, config, run = case
    fake = telling()
    events = run_with(fake, config, run, stop_after="score", again=again)
    assert len(fake.bodies) == 1 + num_asked  # one is the dry call
    assert [event.kind for event in events if event.stage == "score"][-1] == kind


def test_told_once_is_told_for_every_smaller_k(case):
    telling, config, run = case
    loss = {"kind": "forward_kl", "targets": {"k": 3}}
    plenty = {"logprobs": 20}
    fake = telling()
    run_with(fake, config, run, stop_after="score", generation=plenty, again={"loss": loss})
    assert len(fake.bodies) == 1 and run.facts("score")["num_kept"] == 8


def first_refusal(case, fake=None, **changes):
    """What the run says before it asks anything but the dry call."""
    telling, config, run = case
    fake = fake or telling()
    with pytest.raises((ConfigError, TeacherRefused)) as caught:
        run_with(fake, config, run, **changes)
    assert len(fake.bodies) <= 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"temperature": 2.0}}, "cannot be softened later; use loss.temperature: 1"),
        ({"teacher": {"logprobs_mode": None}}, "logprobs_mode says nothing.*temperature: 1"),
        ({"teacher": {"logprobs_mode": "processed"}}, "set teacher.logprobs_mode: raw"),
        ({"data": {"logged_answers": "reuse"}}, "reuse asks nobody"),
        ({"data": {"privacy": "pseudonymise"}}, "learn: pseudonyms"),
        (
            {"generation": {"prompting": "chain_of_thought"}, "task": "qa"},
            "asks for more than the student learns",
        ),
    ],
)
def test_what_no_answer_could_fit_is_refused_before_anything_is_asked(case, changes, message):
    assert re.search(message, first_refusal(case, **changes))


def test_an_endpoint_that_tells_too_few_or_none_is_refused_with_the_way_out(case):
    said = first_refusal(case, loss={"targets": {"k": 64}})
    assert "max is 20" in said and "loss.targets.k" in said
    few = case[0]()
    few.answer, whole = (lambda body: whole({**body, "top_logprobs": 4})), few.answer
    assert "tells at most 4 log-probabilities a token; set loss.targets.k: 4" in first_refusal(
        case, few
    )
    assert "loss.kind: sft needs none" in first_refusal(case, FakeEndpoint())


def test_openais_limit_is_known_without_asking():
    from potstill.models.wire import open_wire

    assert open_wire("https://api.openai.com/v1").most_logprobs == 20
    assert open_wire("https://x.openai.azure.com").most_logprobs == 20
    assert open_wire("https://api.anthropic.com").most_logprobs == 0
    assert open_wire("http://127.0.0.1:8000/v1").most_logprobs is None


def test_sampling_at_temperature_one_needs_no_word_on_the_mode(case):
    telling, config, run = case
    plain = {"teacher": {"logprobs_mode": None}, "generation": {"temperature": 1.0}}
    run_with(telling(), config, run, stop_after="score", **plain)
    assert run.facts("score")["num_kept"] == 8


def test_with_sft_nobody_is_asked_for_probabilities(case):
    _, config, run = case
    fake = FakeEndpoint()
    run_with(fake, config, run, loss={"kind": "sft"}, stop_after="teach")
    assert all("top_logprobs" not in body for body in fake.bodies)
