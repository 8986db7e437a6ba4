"""The page on evaluation: its example runs, and it names every metric."""

import yaml
from examine.fake_models import sample
from pages import PAGES, blocks

from potstill.config import parse_config
from potstill.examine.metrics import estimate, get_metric
from potstill.protocols import BUILTIN, resolve
from potstill.tasks import default_metrics

PAGE = PAGES / "evaluation.md"


def test_the_example_counts_the_complaints_alone(tmp_path, monkeypatch):
    found = blocks(PAGE)
    (tmp_path / "own_metrics.py").write_text(found["python"])
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config(yaml.safe_load(found["yaml"]))
    metric = get_metric(config.evaluate.metrics[-1])
    rows = [
        sample(i, text="Please wait." if i % 2 else "No.",
               metadata={"kind": "complaint" if i < 60 else "praise"})
        for i in range(100)
    ]  # fmt: skip
    value = estimate(metric, rows, seed=0)
    assert (value.value, value.n, value.method) == (0.5, 60, "wilson")
    assert value.signature.endswith("The answer says please; answers to complaints only")


def test_every_metric_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in BUILTIN["metric"] if f"`{name}`" not in text]


def test_the_tables_defaults_are_the_tasks():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for name in BUILTIN["task"]:
        wanted = default_metrics(resolve("task", name), [])
        named = [line for line in rows if name in line.split("|")[1]]
        assert any(all(metric in line for metric in wanted) for line in named), (name, wanted)
