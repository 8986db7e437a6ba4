"""Several runs are one result with an interval over runs, and only like runs are put together."""

import pytest
from examine.fake_report import SHARES, fake_report

from potstill.errors import DataError
from potstill.examine.seeds import mean_over_runs, over_seeds
from potstill.types import Estimate


def run(name, distilled, n=60):
    shares = {"teacher": SHARES["teacher"], "distilled": distilled, "untouched": 0.21}
    return fake_report(n=n, shares=shares).model_copy(update={"run": name})


def test_the_mean_over_runs_has_students_t_interval():
    from scipy.stats import t

    values = [0.80, 0.83, 0.81, 0.86]
    found = mean_over_runs([Estimate(value=v, n=100) for v in values])
    expected = t.interval(0.95, 3, loc=0.825, scale=0.026457513 / 2)
    assert found.value == pytest.approx(0.825) and found.n == 4
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)
    assert found.method == "t interval over 4 runs" and "0.02646" in found.note


def test_runs_are_put_together_by_row_metric_and_pair():
    reports = [run(f"seed-{i}", share) for i, share in enumerate((0.7, 0.8, 0.85))]
    found = over_seeds(reports)
    assert found.runs == ("seed-0", "seed-1", "seed-2")
    each = [r.models["distilled"]["accuracy"] for r in reports]
    assert found.values["distilled"] == tuple(each)
    assert found.models["distilled"]["accuracy"].value == pytest.approx(sum(each) / 3)
    assert found.models["teacher"]["accuracy"].note == "the same in every run"
    assert sum(found.verdicts["distilled - untouched"].values()) == 3
    gap = found.differences["distilled - untouched"]["accuracy"]
    assert gap.low < gap.value < gap.high
    assert found.retention["of_teacher"].n == 3


def test_a_value_that_one_run_lacks_leaves_no_mean():
    found = mean_over_runs([Estimate(value=0.5, n=9), Estimate(value=None, n=9)])
    assert found.value is None and found.note == "1 of 2 runs have no value"


def test_runs_of_other_test_sets_are_refused():
    one, other = run("a", 0.8), run("b", 0.7)
    other = other.model_copy(update={"task": {**other.task, "dataset_hash": "other"}})
    with pytest.raises(DataError, match="a and b differ in dataset_hash"):
        over_seeds([one, other])


def test_one_run_alone_or_twice_is_refused():
    with pytest.raises(DataError, match="at least two runs"):
        over_seeds([run("a", 0.8)])
    with pytest.raises(DataError, match="the report of a is there twice"):
        over_seeds([run("a", 0.8), run("a", 0.8)])
