"""The whole story on tiny models: probabilities, a cut student, variants, GGUF, resuming."""

import json

import pytest
import yaml

from potstill.config import load_config
from potstill.errors import ConfigError, DataError, GateFailed, VocabMismatch
from potstill.pipeline import distill
from potstill.rundir import RunDir

pytestmark = pytest.mark.journey
COLOURS = ("red", "blue", "green", "white")
THINGS = ("cup", "hat", "box", "pen", "bag", "mat", "jar", "fan", "rug", "tap")


@pytest.fixture(scope="module")
def place(tmp_path_factory, teach_tiny):
    """A folder with data, a config and a teacher of four layers that knows the answers."""
    from tiny import tiny_llama

    folder = tmp_path_factory.mktemp("story")
    rows = [
        {"id": f"{colour}-{thing}", "question": f"the {colour} {thing}", "answer": f"{thing}"}
        for colour in COLOURS
        for thing in THINGS
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    teacher = teach_tiny(folder / "train.jsonl", "qa", steps=60)
    tree = {
        "name": "story",
        "task": "qa",
        "teacher": str(teacher),
        "student": {"prune": {"from": str(tiny_llama(folder / "base", layers=4)), "layers": 2}},
        "train_data": "train.jsonl",
        "data": {"validation": 0.2, "test": 0.3},
        "generation": {"temperature": 0, "max_new_tokens": 12, "pilot": 0},
        "checks": ["finished"],
        "loss": {"kind": "forward_kl", "temperature": 2.0, "targets": {"k": 8}},
        "train": {"max_steps": 8, "learning_rate": 0.01, "batch_size": 8, "precision": "fp32"},
        "evaluate": {
            "baselines": ["untouched", "gold_few", "text"],
            "num_few": 4,
            "num_latency_calls": 3,
            "load": {"concurrency": [1, 2], "num_requests": 10},
            "cost": {"machine_price": 0.36, "currency": "EUR", "as_of": "2026-11"},
        },
        "export": ["gguf:f32"],
    }
    (folder / "distill.yaml").write_text(yaml.safe_dump(tree))
    return folder


def told(place, overrides=(), run="run"):
    """Runs the config; returns the report, the run folder and what was done or skipped."""
    events = []
    folder = RunDir(place / run)
    config = load_config(place / "distill.yaml", overrides)
    report = distill(config, folder, on_event=events.append)
    return report, folder, {e.stage: e.kind for e in events if e.kind in ("done", "skipped")}


def test_every_row_is_in_the_report_and_a_second_run_does_nothing(place):
    report, run, kinds = told(place)
    assert set(kinds.values()) == {"done"}
    assert run.facts("split")["num_validation"] > 0
    rows = {"teacher", "untouched", "gold_few", "text", "distilled", "gguf:f32"}
    assert rows <= set(report.models)
    assert report.models["distilled"].num_parameters < report.models["teacher"].num_parameters
    assert all(report.models[role].metrics["latency"].value > 0 for role in rows)
    assert report.models["gguf:f32"]["accuracy"] == report.models["distilled"]["accuracy"]
    lines = run.metrics.read_text().splitlines()
    assert "train/forward_kl_nats" in json.loads(lines[-1]) or "train/forward_kl_nats" in lines[0]

    again, _, kinds = told(place)
    assert set(kinds.values()) == {"skipped"}
    assert again == report


def test_the_report_says_what_its_models_take_and_what_brought_it(place):
    report, run, _ = told(place)
    assert set(report.load) == {"teacher", "distilled", "gguf:f32"}
    claims = {claim["name"]: claim for claim in report.claims}
    bases = {name: claim["basis"] for name, claim in claims.items()}
    measured = dict.fromkeys(("response_time", "memory", "accuracy", "users"), "measured")
    assert bases == {**measured, "cost": "assumed"}
    assert {claim["row"] for claim in report.claims} == {"gguf:f32"}
    parts = [part["what"] for part in claims["response_time"]["parts"]]
    assert parts == ["distillation", "engine"]
    for role in ("teacher", "distilled", "gguf:f32"):
        found = report.models[role]
        times = [found.metrics[name].value for name in ("ttft", "latency")]
        assert 0 < times[0] <= times[1]
        assert found.metrics["memory.cache_token"].value > 0 and found.metrics["memory"].value > 0
        speed = found.setting["speed"]
        assert speed["timed_calls"] == 3 and speed["prompt_tokens"]["least"] > 5
        assert speed["processor"]["cores"] >= 1 and not speed["includes_network"]
    once = report.cost["one_off"]
    assert once["machine_seconds"] > 0 and once["parts"]["machine"] > 0
    assert "teacher" not in once["parts"], "weights on this machine send no bill"
    for page in (run.report_html, run.report_markdown):
        assert "What is said of distilled models, for this run" in page.read_text()


def test_probabilities_kept_while_answering_are_those_that_scoring_finds(place):
    import numpy as np

    from potstill.data.render import render, template_fingerprint, vocab_fingerprint
    from potstill.models.local import LocalModel
    from potstill.models.weights import load_tokenizer
    from potstill.rundir import read_jsonl
    from potstill.targets.store import TargetStore, content_key
    from potstill.tasks import get_task
    from potstill.teach.score import score
    from potstill.types import Record

    _, run, _ = told(place)
    facts = run.facts("score")
    assert facts["num_kept"] > 0.8 * facts["num_rows"], facts["text"]
    assert facts["num_kept"] + facts["num_missing"] == facts["num_rows"]
    config = load_config(place / "distill.yaml")
    teacher = LocalModel(config.teacher.place)
    tokenizer = load_tokenizer(config.teacher.place)
    turns = [get_task("qa").turns(r)[0] for r in read_jsonl(run.accepted, Record)]
    rows = [render(tokenizer, turn.messages, turn.reference) for turn in turns]
    prints = {
        "vocab_fingerprint": vocab_fingerprint(tokenizer),
        "template_fingerprint": template_fingerprint(tokenizer),
        "temperature": 2.0,
    }
    score(teacher, rows, place / "scored", k=8, temperature=2.0,
          student_vocab_fingerprint=prints["vocab_fingerprint"])  # fmt: skip
    ours, theirs = (TargetStore(path, **prints) for path in (run.targets, place / "scored"))

    def dense(store, row):
        ids_NK, logprobs_NK = store.lookup(content_key(row.ids, row.loss_mask))
        found_NV = np.zeros((len(ids_NK), len(tokenizer)))
        np.put_along_axis(found_NV, ids_NK, np.exp(logprobs_NK), axis=-1)
        return found_NV

    for row in rows:  # may be bfloat16, and then the eighth may be another token
        found, wanted = dense(ours, row), dense(theirs, row)
        both = (found > 0) & (wanted > 0)
        assert both.sum() > 0.8 * (wanted > 0).sum()
        np.testing.assert_allclose(found[both], wanted[both], atol=0.05)


def test_two_processes_learn_what_one_learns(place):
    _, alone, _ = told(place)
    config = load_config(
        place / "distill.yaml",
        ["train.processes=2", "train.packing=true", "evaluate.baselines=[]", "export=[]"],
    )
    both = RunDir(place / "both")
    distill(config, both, stop_after="train")
    losses = [
        [json.loads(line)["train/loss_nats"] for line in run.metrics.read_text().splitlines()]
        for run in (alone, both)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert both.facts("train")["packed"]
    assert not both.checkpoints.exists()


def test_a_change_repeats_only_what_depends_on_it(place):
    told(place)
    _, _, kinds = told(place, ["evaluate.margin=0.05"])
    assert kinds["train"] == "skipped"
    assert kinds["evaluate-distilled"] == "skipped"
    assert kinds["compare"] == "done"
    _, _, kinds = told(place, ["train.max_steps=9"])
    assert (kinds["teach"], kinds["score"]) == ("skipped", "skipped")
    assert (kinds["train"], kinds["export-gguf:f32"]) == ("done", "done")
    assert kinds["evaluate-teacher"] == "skipped"
    assert kinds["evaluate-distilled"] == "done"


def test_a_gate_that_is_missed_is_an_error_after_the_report(place):
    told(place)
    with pytest.raises(GateFailed, match="accuracy >= 2"):
        told(place, ["evaluate.gates=['accuracy >= 2']"])
    gates = json.loads(RunDir(place / "run").report_json.read_text())["gates"]
    assert [gate["passed"] for gate in gates] == [False]


def test_a_stage_alone_runs_what_stands_before_it(place):
    config = load_config(place / "distill.yaml")
    run = RunDir(place / "partly")
    assert distill(config, run, stop_after="check") is None
    assert run.accepted.exists()
    assert not run.model.exists()
    with pytest.raises(ConfigError, match="no stage is called 'chekc'"):
        distill(config, run, stop_after="chekc")


def test_probabilities_over_another_vocabulary_are_refused_before_anything_runs(place, tmp_path):
    from tiny import tiny_llama
    from vocabularies import strange_tokenizer

    other = tiny_llama(tmp_path / "other")
    strange_tokenizer().save_pretrained(other)
    config = load_config(place / "distill.yaml", [f"student={other}"])
    run = RunDir(tmp_path / "run")
    with pytest.raises(VocabMismatch, match=r"have different vocabularies.*loss\.kind: sft"):
        distill(config, run)
    assert not run.records.exists()


def test_probabilities_are_passed_on_to_the_same_pieces_of_another_vocabulary(place, tmp_path):
    from tiny import tiny_llama
    from vocabularies import renumbered_tokenizer

    other = tiny_llama(tmp_path / "other")
    renumbered_tokenizer().save_pretrained(other)
    config = load_config(place / "distill.yaml", [f"student={other}", "loss.targets.max_dropped=1"])
    run = RunDir(tmp_path / "run")
    distill(config, run, stop_after="score")
    assert run.facts("score")["num_rows"] > 0
    assert 0 < run.facts("score")["mass_dropped"] < 0.1
    assert " of the probability on tokens the student has not" in run.facts("score")["text"]


def test_a_test_file_that_is_the_training_file_is_refused(place, tmp_path):
    config = load_config(place / "distill.yaml", [f"data.test={place / 'train.jsonl'}"])
    with pytest.raises(DataError, match="no training records are left"):
        distill(config, RunDir(tmp_path / "run"))
