"""The story in one page: prompts and a teacher in, a smaller model and an honest report out."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib import metadata
from json import dumps
from typing import Any

from pydantic import SecretStr

from potstill.config import DistillConfig, dump_config
from potstill.errors import ConfigError, GateFailed
from potstill.models.machine import processor
from potstill.models.several import labels_of
from potstill.models.terms import terms_of
from potstill.pipeline.context import Context, OnEvent
from potstill.pipeline.data import load, split
from potstill.pipeline.evaluate import evaluate
from potstill.pipeline.expand import expand
from potstill.pipeline.export import export
from potstill.pipeline.preflight import preflight
from potstill.pipeline.prepare import prepare
from potstill.pipeline.report import compare, read_report, report
from potstill.pipeline.score import score
from potstill.pipeline.teach import check, teach
from potstill.pipeline.train import train
from potstill.rundir import RunDir, write_text
from potstill.types import Report

STORY = (
    load,  # files -> records
    split,  # records -> train, validation, test; leaks are refused
    expand,  # training prompts -> more of their kind, where the config wants that
    teach,  # prompts -> the teacher's responses
    check,  # responses -> accepted and rejected, with reasons
    score,  # accepted -> the teacher's probabilities, where the loss wants them
    prepare,  # a larger model -> the untouched student, where it is cut out of one
    train,  # accepted -> the student, and the students it is compared with
    export,  # the student -> files for other engines, each proven equal
    evaluate,  # everybody answers the test records
    compare,  # paired on the same records, with intervals and a verdict
    report,  # one page for people
)
PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "peft", "accelerate", "xllamacpp")


def distill(
    config: DistillConfig,
    run: RunDir,
    *,
    workspace: Mapping[str, Any] | None = None,
    secrets: Mapping[str, SecretStr] | None = None,
    on_event: OnEvent | None = None,
    stop_after: str | None = None,
) -> Report | None:
    """Runs a whole distillation, or goes on with one that was interrupted.

    A stage whose inputs have not changed is skipped, so the same call continues after a
    crash, and an edited config repeats only what it changes.

    Args:
        workspace: Short names of models -> where they are.
        secrets: Keys given in clear, such as {"teacher": ...}; written nowhere.
        on_event: Told what happens.
        stop_after: Name of the last stage to run; all by default.

    Returns:
        The report; None when a stage before it was the last one, or without a test set.

    Raises:
        ConfigError, DataError: The question was wrong; nothing was started.
        TeacherError, TrainError, ExportError: The work failed; the same call continues.
        RunLocked: Another process works in this run folder.
        GateFailed: A gate of the config was not met; model and report are in the run folder.
    """
    names = [stage.__name__ for stage in STORY]
    if stop_after is not None and stop_after not in names:
        raise ConfigError(f"no stage is called {stop_after!r}; there are: {', '.join(names)}")
    ctx = Context(config, run, workspace, secrets or {}, on_event)
    with run.locked():
        preflight(ctx)
        write_text(run.config, dump_config(config))
        terms = [
            terms_of(one, workspace=workspace).model_dump(mode="json") for one in config.teachers
        ]
        labels = labels_of(config.teachers)
        by_label = {"teachers": dict(zip(labels, terms, strict=True))}
        named = {"teacher": terms[0]} if len(terms) == 1 else by_label
        facts = {**environment(config), **named}
        write_text(run.environment, dumps(facts, indent=1) + "\n")
        found: Report | None = None
        for stage in STORY:
            if stage is score and config.loss.kind == "sft":
                continue
            found = stage(ctx) or found
            if stage.__name__ == stop_after:
                break
        if stop_after in (None, "compare", "report"):
            _refuse_missed_gates(config, run)
    return found


def _refuse_missed_gates(config: DistillConfig, run: RunDir) -> None:
    """What was not compared has not passed either.

    Raises:
        GateFailed: If a gate of the config was not met, or could not be looked at.
    """
    if not config.evaluate.gates:
        return
    rules = "; ".join(config.evaluate.gates)
    if not run.facts("split").get("num_test") or not run.report_json.exists():
        raise GateFailed(
            f"quality gate not met: {rules}: nothing was compared, because the test set holds no "
            f"records; give more of them with data.test"
        )
    missed = [g for g in read_report(run).gates if not g["passed"]]
    if missed:
        told = "; ".join(f"{gate['rule']} ({gate['found']})" for gate in missed)
        where = run.report_html if run.report_html.exists() else run.report_json
        raise GateFailed(f"quality gate not met: {told}; see {where}")


def environment(config: DistillConfig) -> dict[str, Any]:
    """What the figures of a run are only true for: machine, packages, seeds."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # not everything is needed by every run
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "packages": versions,
        "seeds": {
            "generation": config.generation.seed,
            "train": config.train.seed,
            "evaluate": config.evaluate.seed,
        },
    }
