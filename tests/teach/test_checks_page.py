"""The page on checks: its example runs, and it names every check."""

import yaml
from pages import PAGES, blocks

from potstill.config import parse_config
from potstill.protocols import BUILTIN
from potstill.tasks import get_task
from potstill.teach.accept import accept
from potstill.teach.checks import build_checks, divided
from potstill.teach.isolated import CheckPool
from potstill.types import Message, Record, Response

PAGE = PAGES / "checks.md"


def test_the_example_keeps_the_longest_answer_that_names_the_order(tmp_path, monkeypatch):
    found = blocks(PAGE)
    (tmp_path / "own_checks.py").write_text(found["python"])
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config(yaml.safe_load(found["yaml"]))
    task = get_task(config.task)
    here, apart = divided(config.checks, task)
    record = Record(
        id="r", messages=(Message(role="user", content="Where is it?"),), metadata={"order": 77}
    )
    texts = ["It left us.", "77 is here.", "Your order 77 comes today.", "77?"]
    responses = [
        Response(record_id="r", sample=number, text=text, finish_reason="stop")
        for number, text in enumerate(texts)
    ]
    generation = config.generation
    limits = config.check_limits.model_copy(update={"timeout_seconds": 20, "num_workers": 1})
    with CheckPool(apart, config.task, generation, limits, best_by=generation.best_by) as pool:
        (outcome,) = accept(
            [(record, responses)], task, checks=build_checks(here, task), pool=pool,
            config=generation,
        )  # fmt: skip
    assert [row.reference for row in outcome.accepted] == ["Your order 77 comes today."]
    reasons = {r.sample: r.reason for r in outcome.rejected}
    assert reasons == {0: "no_number", 1: "not_best", 3: "not_best"}


def test_every_check_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in BUILTIN["check"] if f"`{name}`" not in text]
