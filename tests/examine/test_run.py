"""An evaluation asks every turn once, counts failures as wrong, and can be resumed."""

import asyncio

import pytest
from examine.fake_models import Answering, Talk, Topics, failing, record

from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.run import evaluate
from potstill.rundir import read_jsonl
from potstill.types import Response, Sample, Sampling

RECORDS = [record(i, reference="ab"[i % 2], source="web" if i < 4 else "mail") for i in range(8)]


def run(model, path, records=RECORDS, task=None, **more):
    more = {"role": "distilled", "sampling": Sampling(), "format": "fake", **more}
    return asyncio.run(
        evaluate(model, records, task or Topics(), out_samples=path / "samples.jsonl", **more)
    )


def test_a_model_that_is_right_half_the_time_has_accuracy_one_half(tmp_path):
    found = run(Answering(lambda r: "It is a."), tmp_path)
    assert found["accuracy"] == 0.5
    assert found.metrics["accuracy"].n == 8
    assert found.by_class["a"]["recall"].value == 1.0
    assert found.by_class["a"]["precision"].value == 0.5
    assert found.by_class["b"]["precision"].value is None
    assert found.by_slice["source: web"]["accuracy"].n == 4
    assert found.samples == "samples.jsonl"
    assert found.metrics["accuracy"].signature == "topics: the last word is the reference"


def test_samples_are_kept_in_the_order_of_the_records(tmp_path):
    run(Answering(lambda r: r.reference), tmp_path)
    kept = read_jsonl(tmp_path / "samples.jsonl", Sample)
    assert [s.record_id for s in kept] == [r.id for r in RECORDS]
    assert all(s.references == (r.reference,) for s, r in zip(kept, RECORDS, strict=True))


def test_it_asks_as_many_at_once_as_the_model_wants(tmp_path):
    model = Answering(lambda r: "a", max_in_flight=3, seconds=0.001)
    run(model, tmp_path)
    assert model.most_open == 3


def test_errors_and_cut_answers_are_wrong_and_counted(tmp_path):
    def answer(r):
        if r.id == "r0":
            return failing()
        if r.id == "r1":
            return Response(record_id=r.id, text="It is b", finish_reason="length")
        return r.reference

    found = run(Answering(answer), tmp_path)
    assert found["accuracy"] == 6 / 8
    assert found.metrics["accuracy"].n_error == 2
    assert found["truncation_rate"] == 1 / 8
    kept = read_jsonl(tmp_path / "samples.jsonl", Sample)
    assert kept[0].error == "no answer after 3 tries" and kept[1].prediction is None


class Generous(Topics):
    """Calls every answer right, also none."""

    def correct(self, prediction, record):
        return 1.0


def test_a_cut_answer_is_wrong_whatever_the_task_says(tmp_path):
    model = Answering(lambda r: Response(record_id=r.id, text="a", finish_reason="length"))
    assert run(model, tmp_path, task=Generous())["accuracy"] == 0.0


def test_a_second_run_asks_nothing(tmp_path):
    first = run(Answering(lambda r: r.reference), tmp_path)
    again = Answering(lambda r: "other")
    assert run(again, tmp_path) == first
    assert again.asked == []


def test_only_what_is_missing_or_failed_is_asked_again(tmp_path):
    run(Answering(lambda r: failing() if r.id == "r3" else "a"), tmp_path)
    file = tmp_path / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # a crash cut the last line
    again = Answering(lambda r: "a")
    run(again, tmp_path)
    assert sorted(again.asked) == [("r3", 0), ("r7", 0)]
    assert len(read_jsonl(file, Sample)) == 8


@pytest.mark.parametrize(
    "change", [{"sampling": Sampling(max_new_tokens=5)}, {"fingerprint": "other weights"}]
)
def test_other_decoding_or_weights_ask_again(tmp_path, change):
    run(Answering(lambda r: "a"), tmp_path)
    again = Answering(lambda r: "a")
    run(again, tmp_path, **change)
    assert len(again.asked) == 8


def test_what_came_before_a_crash_is_kept(tmp_path):
    def answer(r):
        if r.id == "r5":
            raise RuntimeError("a bug")
        return "a"

    with pytest.raises(RuntimeError, match="a bug"):
        run(Answering(answer, max_in_flight=1), tmp_path)
    assert len(read_jsonl(tmp_path / "samples.jsonl", Sample)) == 5


def test_a_model_that_will_never_answer_ends_the_evaluation(tmp_path):
    with pytest.raises(TeacherRefused):
        run(Answering(lambda r: TeacherRefused("wrong key")), tmp_path)


def test_a_model_that_answers_nothing_is_an_error_and_not_a_zero(tmp_path):
    with pytest.raises(TeacherError, match="answered none of 8"):
        run(Answering(lambda r: failing()), tmp_path)


def test_no_records_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no records"):
        run(Answering(lambda r: "a"), tmp_path, records=[])


def test_turns_of_a_conversation_are_one_group(tmp_path):
    found = run(Answering(lambda r: "a"), tmp_path, task=Talk())
    kept = read_jsonl(tmp_path / "samples.jsonl", Sample)
    assert [(s.record_id, s.turn, s.group) for s in kept[:2]] == [("r0", 0, "r0"), ("r0", 1, "r0")]
    assert found.metrics["accuracy"].n == 16 and "8 groups" in found.metrics["accuracy"].note


def test_a_field_can_group_records(tmp_path):
    found = run(Answering(lambda r: "a"), tmp_path, group_by="source")
    assert "2 groups" in found.metrics["accuracy"].note


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    run(
        Answering(lambda r: "a"),
        tmp_path,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (8, 8)
    assert seen == sorted(seen)


def test_without_references_there_is_no_accuracy(tmp_path):
    found = run(
        Answering(lambda r: "a"), tmp_path, records=[record(0)], metrics=["truncation_rate"]
    )
    assert "accuracy" not in found.metrics
