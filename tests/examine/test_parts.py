"""A test set is cut by any field, by label and by length, and small parts say so."""

import asyncio

import pytest
from examine.fake_models import Answering, Topics, record, sample

from potstill.examine.metrics import accuracy
from potstill.examine.parts import slice_estimates, slices
from potstill.examine.run import evaluate, named_metrics
from potstill.types import Sampling


def rows(n, **fields):
    """Fields are functions of the row's number."""
    return [
        sample(i, correct=float(i % 3 > 0), prompt="a" * (i + 1),
               metadata={name: of(i) for name, of in fields.items()})
        for i in range(n)
    ]  # fmt: skip


def test_any_field_cuts_the_test_set():
    found = slice_estimates(accuracy, rows(30, tone=lambda i: "kind" if i % 3 else "rude"),
                            fields=["tone"], seed=0)  # fmt: skip
    assert found["tone: kind"]["accuracy"].value == 1.0
    assert found["tone: rude"]["accuracy"].value == 0.0
    assert "below 50" in found["tone: rude"]["accuracy"].note


def test_the_label_is_the_right_answer_where_there_are_few():
    labelled = [sample(i, target="ab"[i % 2], correct=1.0) for i in range(20)]
    assert set(slices(labelled, ["label"])) == {"label: a", "label: b"}
    different = [sample(i, target=f"answer {i}", correct=1.0) for i in range(20)]
    assert slices(different, ["label"]) == {}


def test_numbers_with_many_values_are_cut_into_quarters():
    found = slices(rows(80, price=lambda i: i * 1.5), ["price"], by_length=False)
    assert [len(part) for part in found.values()] == [20, 20, 20, 20]
    assert list(found) == [f"price: {q} quarter" for q in ("lowest", "second", "third", "highest")]


def test_rare_values_go_together():
    found = slices(rows(100, city=lambda i: f"c{i % 40 if i % 4 else 0}"), ["city"])
    named = [name for name in found if name.startswith("city: c")]
    assert len(named) == 11 and "city: c0" in named
    assert sum(len(part) for name, part in found.items() if name.startswith("city")) == 100


@pytest.mark.parametrize("of", [lambda i: "same", lambda i: f"id-{i}", lambda i: None,
                                lambda i: ["a", "list"]])  # fmt: skip
def test_a_field_that_makes_no_parts_is_passed_over(of):
    assert slices(rows(30, field=of), ["field", "missing"], by_length=False) == {}


def test_the_prompts_length_makes_quarters():
    found = slices(rows(40), [])
    assert [len(part) for part in found.values()] == [10, 10, 10, 10]
    assert slices(rows(39), []) == {}


def test_evaluate_cuts_by_the_fields_it_is_given(tmp_path):
    records = [record(i, reference="ab"[i % 2], tone="xy"[i % 2], source="z") for i in range(8)]
    model = Answering(lambda r: "It is a.")
    found = asyncio.run(
        evaluate(model, records, Topics(), role="distilled", sampling=Sampling(), format="fake",
                 out_samples=tmp_path / "s.jsonl", slices=("tone", "source"))
    )  # fmt: skip
    assert set(found.by_slice) == {"tone: x", "tone: y"}
    assert found.by_slice["tone: x"]["accuracy"].value == 1.0


def test_what_is_measured_apart_is_no_metric_of_answers():
    names = [metric.name for metric in named_metrics(Topics(), ["inference_time", "macro_f1"])]
    assert names == ["macro_f1", "accuracy"]


def test_questions_with_options_have_classes(tmp_path):
    from potstill.tasks import get_task

    records = [
        record(i, reference="AB"[i % 2], choices={"A": "red", "B": "blue"}) for i in range(6)
    ]
    found = asyncio.run(
        evaluate(Answering(lambda r: "B"), records, get_task("qa"), role="distilled",
                 sampling=Sampling(), out_samples=tmp_path / "s.jsonl", format="fake")
    )  # fmt: skip
    assert "macro_f1" in found.metrics and set(found.by_class) == {"A", "B"}
