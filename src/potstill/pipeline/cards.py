"""Model and dataset cards: where a student comes from, for whoever gets it. Counts, no texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import ConfigError
from potstill.examine.markdown import safe, table, titled
from potstill.examine.numbers import estimate, number, size
from potstill.examine.report_verdict import metric_text, role_text
from potstill.export.manifest import CARD, ExportManifest, read_manifest
from potstill.models.catalog import ModelRef, find_model
from potstill.models.terms import TeacherTerms, terms_of
from potstill.pipeline.artefacts import healing_text
from potstill.pipeline.context import Context
from potstill.rundir import RunDir, content_hash, write_text
from potstill.types import Report

LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "meta llama 3 community license": "llama3",
    "llama 3.1 community license": "llama3.1",
    "llama 3.2 community license": "llama3.2",
    "gemma terms of use": "gemma",
}
"""Licences of the catalogue, in lower case -> the hub's identifiers."""

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_cards(ctx: Context) -> None:
    """Writes README.md into every artefact's folder of a run and beside its data.

    Written again whenever more is known: a run exports before it compares.
    """
    run = ctx.run
    folders = [folder for folder in sorted(run.exports.glob("[!.]*")) if folder.is_dir()]
    for folder in folders:
        write_text(folder / CARD, model_card(ctx, read_manifest(folder)))
    if run.accepted.exists():
        write_text(run.dataset_card, dataset_card(ctx))


_LIBRARY = {
    "huggingface": "transformers",
    "gguf": "gguf",
    "onnx": "onnxruntime-genai",
    "ctranslate2": "ctranslate2",
}
"""Format -> what the hub calls its library."""


def model_card(ctx: Context, manifest: ExportManifest) -> str:
    """The card of one artefact: Markdown below the YAML header that the hub reads."""
    base = find_model(ctx.config.student.place, workspace=ctx.workspace)
    header: dict[str, Any] = {
        **_licence(base),
        **_library(manifest),
        "pipeline_tag": "text-generation",
        "tags": ["potstill", "distillation"],
    }
    if _is_on_hub(base):
        header |= {"base_model": base.source, "base_model_relation": _relation(manifest)}
    name = ctx.config.name
    lines = [
        f"A student of {_named(base)}, distilled with Potstill for the task "
        f"{safe(ctx.config.task)}. This folder: {safe(manifest.format)}, {safe(manifest.quant)}.",
        _warnings(ctx),
        titled("Where it comes from", _origin(ctx, base)),
        titled("Data", _data(ctx)),
        _quality(ctx.run),
        titled("Is it the student?", _proof(manifest)),
        titled("Use", _use(manifest, name)),
    ]
    return _page(header, name, lines)


def dataset_card(ctx: Context) -> str:
    """The card of the accepted rows, what the student learnt from."""
    kept = ctx.run.facts("check")
    count = kept.get("num_train", 0) + kept.get("num_validation", 0)
    header = {
        "license": "unknown",
        "tags": ["potstill", "distillation", "synthetic"],
        "task_categories": ["text-generation"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [next((word for most, word in SIZES if count < most), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": ctx.run.accepted.name}],
            }
        ],
    }
    lines = [
        f"Prompts of the user with answers of the teacher, as the student {safe(ctx.config.name)} "
        f"learnt them. Whose the prompts are, and what they may be used for, is not known here.",
        _warnings(ctx),
        titled("Where the answers come from", _teachers(ctx)),
        titled("Rows", _data(ctx)),
    ]
    return _page(header, f"{ctx.config.name}: training data", lines)


def _page(header: Mapping[str, Any], title: str, lines: list[str]) -> str:
    top = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(line for line in lines if line)
    return f"---\n{top}---\n\n# {safe(title)}\n\n{body}\n"


def _licence(base: ModelRef) -> dict[str, str]:
    """The base's licence in the hub's words; a student is a work made of it."""
    if not base.licence:
        return {"license": "unknown"}
    known = LICENCES.get(base.licence.lower())
    if known:
        return {"license": known}
    name = re.sub(r"[^a-z0-9.]+", "-", base.licence.lower()).strip("-")
    return {"license": "other", "license_name": name}


def _library(manifest: ExportManifest) -> dict[str, str]:
    """What reads the artefact, where the hub has a name for it."""
    if manifest.quant == "adapter":
        return {"library_name": "peft"}
    known = _LIBRARY.get(manifest.format)
    return {"library_name": known} if known else {}


def _relation(manifest: ExportManifest) -> str:
    if manifest.quant == "adapter":
        return "adapter"
    return "quantized" if manifest.quant in ("q8_0", "q4_0", "q4_1", "int8", "int4") else "finetune"


def _is_on_hub(ref: ModelRef) -> bool:
    """Whether the name is one that others can look up; a folder `a/b` only looks like one."""
    is_id = ref.kind == "huggingface" and _HUB_ID.fullmatch(ref.source) is not None
    return is_id and (ref.catalogued or ref.name == ref.source)


def _named(ref: ModelRef) -> str:
    """A model's name; of a folder its last part, since the rest is somebody's machine."""
    return safe(ref.source if _is_on_hub(ref) else ref.name.rstrip("/").rpartition("/")[2])


def _terms(ctx: Context) -> list[TeacherTerms]:
    found = []
    for one in ctx.config.teachers:
        try:
            found.append(terms_of(one, workspace=ctx.workspace))
        except ConfigError:  # it has moved since it taught, and the artefact is made already
            found.append(TeacherTerms(teacher=Path(one.place).name))
    return found


def _warnings(ctx: Context) -> str:
    """What stands against training on a teacher's outputs, where anything is known to."""
    if ctx.config.data.logged_answers == "reuse":
        return "**Warning:** the answers were logged before, and whose they are is not known."
    told = [terms.text for terms in _terms(ctx) if terms.text]
    return "\n\n".join(f"**Warning:** {safe(text)}." for text in told)


def _origin(ctx: Context, base: ModelRef) -> list[str]:
    licence = base.licence or "not known; look before you pass it on"
    cut = ctx.run.facts("prepare").get("text") if ctx.config.student.prune else None
    return [
        f"base model: {_named(base)}" + (f", cut: {safe(cut)}" if cut else ""),
        f"licence of the base model: {safe(licence)}",
        *_teachers(ctx),
        f"learnt: {safe(ctx.config.loss.kind)}, {safe(ctx.run.facts('train').get('text', ''))}",
    ]


def _teachers(ctx: Context) -> list[str]:
    if ctx.config.data.logged_answers == "reuse":
        return ["teacher: none was asked, logged answers were learnt"]
    return [
        f"teacher: {safe(terms.teacher.rstrip('/').rpartition('/')[2])}, licence "
        f"{safe(terms.licence or 'not known')}, training on its outputs: {terms.train_on_outputs}"
        for terms in _terms(ctx)
    ]


def _data(ctx: Context) -> list[str]:
    """The funnel, in counts; the share of synthetic text; the hash of what was learnt."""
    run = ctx.run
    asked, kept, new = run.facts("teach"), run.facts("check"), run.facts("expand")
    lines = []
    if "requested" in asked:
        lines.append(f"answers asked for: {asked['requested']:,}, given: {asked['answered']:,}")
    if kept:
        num_train, num_validation = kept.get("num_train", 0), kept.get("num_validation", 0)
        lines.append(f"accepted: {num_train:,} to learn from, {num_validation:,} to validate")
        reasons = kept.get("reasons", {})
        told = ", ".join(f"{safe(reason)} {count:,}" for reason, count in reasons.items())
        lines.append(f"rejected: {told or 'none'}")
    share = 0.0
    if ctx.config.data_generation is not None and new.get("num_new"):
        share = new["num_new"] / (new["num_new"] + new.get("num_real", 0))
    written = "logged" if ctx.config.data.logged_answers == "reuse" else "all by the teacher"
    lines.append(f"synthetic: answers {written}, prompts {share:.0%}")
    if run.accepted.exists():
        lines.append(f"SHA-256 of the accepted rows: {content_hash(run.accepted)[:16]}")
    return lines


def _quality(run: RunDir) -> str:
    """The models of the report side by side, and its verdict."""
    if not run.report_json.exists():
        return "## How good it is\n\nNot compared with its teacher."
    found = Report.model_validate_json(run.report_json.read_text(encoding="utf-8"))
    rows = []
    for role, one in found.models.items():
        value = one.metrics.get(found.primary_metric)
        latency = one.metrics.get("latency")
        known = latency is not None and latency.value is not None
        rows.append(
            [
                safe(role if role_text(role) == role else f"{role}: {role_text(role)}"),
                estimate(value) if value else "",
                number(latency.value, latency.unit) if known and latency else "",
                size(one.disk_bytes) if one.disk_bytes else "",
            ]
        )
    headings = ["", safe(metric_text(found.primary_metric)), "latency", "on disk"]
    n = found.task.get("n")
    told = f"{n:,} test records; values with 95 % intervals." if isinstance(n, int) else ""
    return f"## How good it is\n\n{safe(found.verdict)}\n\n{table(headings, rows)}\n\n{told}"


def _proof(manifest: ExportManifest) -> list[str]:
    lines = [safe(note) for note in manifest.notes]
    if manifest.healing is not None:
        lines.append(healing_text(manifest.healing))
    if (parity := manifest.parity) is not None:
        lines.append(
            f"compared with the student on {parity.num_prompts} prompts in {safe(parity.engine)}: "
            f"same next token at {parity.argmax_agreement:.1%} of {parity.num_tokens:,} places, "
            f"mean KL {parity.mean_kl_nats:.2g} nat"
        )
        if parity.changed_limits:
            told = ", ".join(f"{name} {v:g}" for name, v in parity.changed_limits.items())
            lines.append(f"limits that were changed for it: {safe(told)}")
    return lines


def _use(manifest: ExportManifest, name: str) -> list[str]:
    if manifest.format == "gguf":
        return [
            f"`ollama create {name} -f Modelfile`, then `ollama run {name}`",
            f"`llama-server -m {manifest.main} --jinja`",
        ]
    if manifest.quant == "adapter":
        return ["peft: `AutoPeftModelForCausalLM.from_pretrained(FOLDER)`"]
    if manifest.format == "huggingface":
        return ["transformers: `AutoModelForCausalLM.from_pretrained(FOLDER)`"]
    if manifest.format == "ctranslate2":
        return ["CTranslate2: `ctranslate2.Generator(FOLDER)`"]
    if manifest.format == "onnx":
        return [
            "ONNX Runtime GenAI: `onnxruntime_genai.Model(FOLDER)`",
            f"Foundry Local: copy the folder into its cache, then `foundry model run {name}`",
        ]
    return []
