"""A check that hangs, crashes or eats memory costs its own row and no other."""

import time
from pathlib import Path

import pytest

from potstill.config import CheckLimits, GenerationConfig
from potstill.errors import ConfigError
from potstill.tasks import get_task
from potstill.teach.accept import accept
from potstill.teach.isolated import CheckPool
from potstill.types import Message, Record, Response

MISBEHAVES = "teach.poison:misbehaves"


def rows(*texts):
    for number, text in enumerate(texts):
        record = Record(id=f"r{number}", messages=(Message(role="user", content="?"),))
        yield record, [Response(record_id=record.id, text=text, finish_reason="stop")]


def pool(*names, num_workers=1, timeout_seconds=5.0, memory_mb=256, task="qa", **options):
    limits = CheckLimits(
        timeout_seconds=timeout_seconds, memory_mb=memory_mb, num_workers=num_workers
    )
    return CheckPool(names, task, GenerationConfig(), limits, **options)


def sorted_by(checks, *texts, task="qa", config=None):
    """Text -> "" where it was accepted, else reason and detail."""
    found = {}
    outcomes = accept(rows(*texts), get_task(task), pool=checks, config=config)
    for text, outcome in zip(texts, outcomes, strict=True):
        reasons = [f"{r.reason}: {r.check}: {r.detail}" for r in outcome.rejected]
        found[text] = reasons[0] if reasons else ""
    return found


@pytest.mark.parametrize(
    ("poison", "expected"),
    [
        ("hang", "timeout: teach.poison:misbehaves: no verdict within 0.7 s"),
        ("deaf", "timeout: teach.poison:misbehaves: no verdict within 0.7 s"),
        ("crash", "check_failed: teach.poison:misbehaves: the check's process ended (SIGSEGV)"),
        ("eat", "check_failed: teach.poison:misbehaves: needs more than 256 MiB"),
        ("raise", "check_failed: teach.poison:misbehaves: ZeroDivisionError: divided by nothing"),
        ("exit", "check_failed: teach.poison:misbehaves: SystemExit: 0"),
        (
            "lie",
            f"check_failed: {MISBEHAVES}: TypeError: returned str, not None or a Rejection",
        ),
        ("print", ""),
        ("reject", "own: misbehaves: as asked"),
    ],
)
def test_a_poison_row_is_rejected_alone(poison, expected):
    seconds = 0.7 if expected.startswith("timeout") else 10
    with pool(MISBEHAVES, timeout_seconds=seconds) as checks:
        found = sorted_by(checks, "good", poison, "better")
    assert found == {"good": "", poison: expected, "better": ""}


def test_many_workers_give_the_verdicts_of_one_in_the_order_of_the_rows():
    texts = ["reject" if number % 3 == 0 else f"answer {number}" for number in range(30)]
    texts[20] = "crash"
    verdicts = []
    for num_workers in (1, 2):
        with pool(MISBEHAVES, num_workers=num_workers) as checks:
            outcomes = list(accept(rows(*texts), get_task("qa"), pool=checks))
        assert [
            (outcome.accepted + outcome.rejected)[0].model_dump().get("record_id") or f"r{number}"
            for number, outcome in enumerate(outcomes)
        ] == [f"r{number}" for number in range(30)]
        verdicts.append([[r.reason for r in outcome.rejected] for outcome in outcomes])
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][20] == ["check_failed"]


def test_a_check_with_a_memory_sees_all_rows_in_one_worker():
    with pool("teach.poison:NotTwice", num_workers=3, one_worker=True) as checks:
        outcomes = list(accept(rows(*["a", "b"] * 10), get_task("qa"), pool=checks))
    assert [len(outcome.accepted) for outcome in outcomes] == [1, 1] + [0] * 18


def test_a_check_that_cannot_be_loaded_is_an_error_of_the_config():
    with (
        pool("teach.poison:nothing_such") as checks,
        pytest.raises(ConfigError, match="nothing_such"),
    ):
        list(accept(rows("a"), get_task("qa"), pool=checks))


def noted(text, place):
    """A row that writes the number of the process that hangs on it."""
    ((record, responses),) = rows(text)
    return record.model_copy(update={"metadata": {"note": str(place)}}), {0: responses[0]}


def is_running(pid):
    """Whether a process is there and not waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_check_started_ends_with_it(tmp_path):
    place = tmp_path / "pid"
    with pool(MISBEHAVES, timeout_seconds=1.5) as checks:
        verdict = checks.submit(*noted("deaf", place)).result()
        assert verdict.rejection.reason == "timeout"
        pid = int(place.read_text())
        deadline = time.monotonic() + 5
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(pid)


def test_leaving_early_ends_the_workers_that_hang(tmp_path):
    place = tmp_path / "pid"
    started = time.monotonic()
    with pool(MISBEHAVES, timeout_seconds=60) as checks:
        future = checks.submit(*noted("hang", place))
        while not place.exists() and not future.done():
            time.sleep(0.01)
    assert time.monotonic() - started < 20
    assert future.done()
    assert not is_running(int(place.read_text()))


def test_the_best_answer_by_a_function_of_the_users_is_kept():
    config = GenerationConfig(choose="best", best_by="teach.poison:length", num_responses=3)
    record = Record(id="r", messages=(Message(role="user", content="?"),))
    responses = [
        Response(record_id="r", sample=number, text=text, finish_reason="stop")
        for number, text in enumerate(["no", "longest", "long"])
    ]
    with pool(best_by="teach.poison:length") as checks:
        (outcome,) = accept([(record, responses)], get_task("qa"), pool=checks, config=config)
    assert [(kept.id, kept.reference) for kept in outcome.accepted] == [("r#1", "longest")]
    assert [(r.sample, r.reason) for r in outcome.rejected] == [(0, "not_best"), (2, "not_best")]


@pytest.mark.slow
def test_a_formula_is_verified_and_a_hanging_one_rejected():
    """The power tower would keep computer algebra busy for hours."""
    record = Record(
        id="r", messages=(Message(role="user", content="?"),), reference=r"#### \frac{x}{2}"
    )
    texts = [r"#### x/2", r"#### x/3", r"#### 9^{9^{9^{9}}}+x"]
    given = [
        (
            record.model_copy(update={"id": str(number)}),
            [Response(record_id=str(number), text=text, finish_reason="stop")],
        )
        for number, text in enumerate(texts)
    ]
    with pool("task", task="math", timeout_seconds=3, memory_mb=512) as checks:
        right, wrong, poison = accept(given, get_task("math"), pool=checks)
    assert len(right.accepted) == 1
    assert [r.reason for r in wrong.rejected] == ["disagrees"]
    assert poison.rejected[0].reason in ("timeout", "check_failed")
