"""Stages compare and report: evaluations side by side, with a verdict, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.examine.general_pairs import with_drifts
from potstill.examine.metrics import get_metric
from potstill.examine.report import build_report
from potstill.examine.report_html import render_html
from potstill.examine.report_judge import judge_metrics, with_judge
from potstill.examine.report_markdown import render_markdown
from potstill.examine.run import read_names
from potstill.pipeline.cards import write_cards
from potstill.pipeline.context import Context, decoding
from potstill.pipeline.takes import LOAD_STAGE, what_it_takes
from potstill.rundir import RunDir, content_hash, read_jsonl, write_text
from potstill.tasks import default_metrics, is_closed
from potstill.types import Estimate, Evaluation, Record, Report, Sample


def compare(ctx: Context) -> None:
    """Compares every row with the distilled student, paired on the same records."""
    run, config = ctx.run, ctx.config
    if not run.evaluation("distilled").exists():
        return
    evaluations = _evaluations(ctx)
    files = [run.evaluation(role) for role in evaluations]

    def work() -> dict[str, Any]:
        samples = {role: read_jsonl(run.samples(role), Sample) for role in evaluations}
        records = read_jsonl(run.test, Record)
        named = read_names(config.evaluate.metrics)
        names = named or default_metrics(ctx.task, records)
        found = build_report(
            run=config.name,
            task=_task_facts(ctx),
            evaluations=evaluations,
            samples=samples,
            primary_metric=names[0],
            margin=config.evaluate.margin,
            seed=config.evaluate.seed,
            closed=is_closed(records, ctx.task),
            metric_names=names,
            slices=config.evaluate.slices,
            gates=config.evaluate.gates,
            data=_funnel(ctx),
            training=_training(ctx),
            environment=json.loads(run.environment.read_text(encoding="utf-8")),
            limits=_limits(ctx, samples["distilled"]),
        )
        found = found.model_copy(update=what_it_takes(ctx, found, samples, get_metric(names[0])))
        found = with_judge(found, _judge(ctx))
        if config.evaluate.general_tasks:
            folders = {role: run.general(role) for role in ("untouched", "distilled")}
            found = with_drifts(
                found, folders, margin=config.evaluate.margin, seed=config.evaluate.seed
            )
        write_text(run.report_json, found.model_dump_json(indent=1) + "\n")
        # The verdict itself follows under the last stage; here it would stand there twice.
        return {"text": f"{len(evaluations)} models on the same {found.task['n']:,} records"}

    # Times differ from one measurement to the next.
    stages = ("measure", "general", LOAD_STAGE)
    measured = [run.facts(stage).get("finished_at") for stage in stages]
    inputs = (*files, measured, _judge(ctx), config.evaluate, config.name, list(evaluations))
    ctx.stage("compare", inputs, work)


def report(ctx: Context) -> Report | None:
    """Writes the report as Markdown and as one page of HTML; needs no model."""
    run = ctx.run
    if run.report_json.exists():
        ctx.stage("report", (run.report_json, run.metrics), lambda: render(run))
    write_cards(ctx)
    return read_report(run) if run.report_json.exists() else None


def read_report(run: RunDir) -> Report:
    """The report of a run that has one."""
    return Report.model_validate_json(run.report_json.read_text(encoding="utf-8"))


def render(run: RunDir) -> dict[str, Any]:
    """Draws Markdown and HTML from report.json, again at any time."""
    found = read_report(run)
    write_text(run.report_markdown, render_markdown(found))
    curves = {"distilled": _curve(run)}
    for name in found.models:
        if run.variant(name).metrics.exists():
            curves[name] = _curve(run.variant(name))
    write_text(run.report_html, render_html(found, samples_dir=run.reports, curves=curves))
    return {"text": str(run.report_html)}


def _curve(run: RunDir) -> list[dict[str, Any]]:
    if not run.metrics.exists():
        return []
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _evaluations(ctx: Context) -> dict[str, Evaluation]:
    """All evaluations of the run, with the speed and memory that were measured for them."""
    from potstill.pipeline.evaluate import rows_of  # it needs torch; drawing a report does not

    run = ctx.run
    roles = [row.role for row in rows_of(ctx)]
    if "plain" in ctx.config.evaluate.baselines:
        roles += run.facts("evaluate-plain").get("roles", [])
    is_measured = ctx.config.evaluate.num_latency_calls >= 2
    measured = run.facts("measure") if is_measured else {}
    general = run.facts("general").get("general", {}) if ctx.config.evaluate.general_tasks else {}
    judged = judge_metrics(_judge(ctx), "distilled")
    found = {}
    for role in roles:
        text = run.evaluation(role).read_text(encoding="utf-8")
        evaluation = Evaluation.model_validate_json(text)
        extra = {**measured.get("metrics", {}).get(role, {}), **general.get(role, {})}
        metrics = {name: Estimate.model_validate(value) for name, value in extra.items()}
        metrics |= judged.get(role, {})
        update: dict[str, Any] = {"metrics": {**evaluation.metrics, **metrics}}
        if role in measured.get("settings", {}):
            update["setting"] = {**evaluation.setting, "speed": measured["settings"][role]}
        found[role] = evaluation.model_copy(update=update)
    return found


def _limits(ctx: Context, answers: Sequence[Sample]) -> list[str]:
    """What answers to conversations do not show, by the history they were given on."""
    if not any(sample.turn for sample in answers):
        return []
    if ctx.config.evaluate.history == "own":
        return [
            "Each turn was asked on the model's own answers before it, while the user's turns are "
            "those of the known conversation: a user would have reacted to another answer."
        ]
    return [
        "Each turn was asked on the known answers before it: whether a model's own mistakes "
        "mislead it later on is not shown (evaluate.history: own shows that)."
    ]


def _judge(ctx: Context) -> dict[str, Any]:
    """What the judge said; empty where the config has none."""
    found = {} if ctx.config.evaluate.judge is None else ctx.run.facts("judge")
    kept = ("name", "family", "warnings", "preferences", "scores", "comparisons")
    kept += ("score_agreement", "cost")
    return {name: found[name] for name in kept if name in found}


def _task_facts(ctx: Context) -> dict[str, Any]:
    records = read_jsonl(ctx.run.test, Record)
    prompts = [turn.messages for record in records for turn in ctx.task.turns(record)]
    return {
        "name": ctx.config.task,
        "split": "test",
        "n": len(records),
        "num_answers": len(prompts),
        "dataset_hash": content_hash(ctx.run.test)[:16],
        "prompt_hash": content_hash([[m.content for m in prompt] for prompt in prompts])[:16],
        "decoding": decoding(ctx).model_dump(mode="json"),
    }


def _funnel(ctx: Context) -> dict[str, Any]:
    run = ctx.run
    asked, kept = run.facts("teach"), run.facts("check")
    new = {} if ctx.config.data_generation is None else run.facts("expand")
    names = ("num_real", "num_new", "num_requests", "share_real", "reasons")
    return {
        "requested": asked.get("requested"),
        "answered": asked.get("answered"),
        **({"wanted": asked["wanted"], "rounds": asked["rounds"]} if "wanted" in asked else {}),
        **({"new_prompts": {name: new[name] for name in names}} if new else {}),
        "accepted": kept.get("num_train", 0) + kept.get("num_validation", 0),
        "rejected": kept.get("reasons", {}),
        **({"teachers": said} if (said := _by_teacher(asked, kept)) else {}),
        "leaks_dropped": run.facts("split").get("num_dropped", 0),
        "spending": kept.get("spending", {}),
        "quality": kept.get("quality", {}),
        "trial": asked.get("trial", {}),
        "student": run.facts("prepare").get("text", "") if ctx.config.student.prune else "",
        "hidden": asked.get("hidden") or run.facts("load").get("replaced", {}),
    }


def _by_teacher(asked: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> answers, failed, cost and accepted rows; empty where there is one teacher."""
    accepted = kept.get("teachers", {})
    return {
        label: {**said, "accepted": accepted.get(label, 0)}
        for label, said in (asked.get("teachers") or {}).items()
    }


def _training(ctx: Context) -> dict[str, Any]:
    kept = (
        "steps",
        "num_steps",
        "best_step",
        "best_validation_loss_nats",
        "seconds",
        "tokens_per_second",
        "precision",
        "num_rows",
        "num_trainable",
        "stopped_early",
    )
    stages = {
        "distilled": "train",
        "text": "train-text",
        "gold_few": "train-gold_few",
        "gold_all": "train-gold_all",
    }
    found = {}
    for role, stage in stages.items():
        facts = ctx.run.facts(stage)
        if facts:
            found[role] = {name: facts[name] for name in kept if name in facts}
    return found
