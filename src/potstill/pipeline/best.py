"""The smallest artefact that is still good enough, by the records that everybody answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from potstill.errors import ConfigError, ExportError
from potstill.examine.gates import check_gates, parse_gate
from potstill.export.manifest import read_manifest
from potstill.pipeline.context import Context
from potstill.pipeline.evaluate import evaluate_exports
from potstill.pipeline.export import exported_files
from potstill.rundir import RunDir, read_jsonl
from potstill.types import Evaluation, Noun, Sample

STUDENT = "student"
"""What a rule calls the distilled student."""


class Held(Noun):
    """Whether a rule holds for one artefact."""

    name: str
    num_bytes: int
    holds: bool
    found: str
    """Its value against the limit."""


def choose(ctx: Context, rule: str) -> list[Held]:
    """The run's artefacts, smallest first, with what a rule found of each.

    Artefacts that have not answered the test set are asked now.

    Args:
        rule: Such as `accuracy >= 0.98 * student`, or `* teacher`.

    Raises:
        ConfigError: If the rule cannot be read or names a model that was not evaluated, or the
            run has no test set, or no artefact that an engine here runs.
    """
    gate = parse_gate(rule, where="--best")
    names = made(ctx.run, ctx.config.export)
    ctx = dataclasses.replace(ctx, config=ctx.config.model_copy(update={"export": names}))
    files = exported_files(ctx)
    if not files:
        raise ConfigError(
            f"{ctx.run.path} has no artefact that is run here; make some: potstill export "
            f"{ctx.run.path} --to gguf:q8_0 --to gguf:q4_0"
        )
    found = evaluate_exports(ctx)
    sizes = {name: ctx.run.facts(f"export-{name}")["bytes"] for name in files}
    rows = judged(rule, sizes, found)
    if gate.role is not None:
        _refuse_other_records(ctx.run, gate.role, list(files))
    return rows


def judged(rule: str, sizes: Mapping[str, int], found: Mapping[str, Evaluation]) -> list[Held]:
    """What a rule finds of each artefact, smallest first.

    Args:
        sizes: Artefact -> bytes on disk.
        found: Evaluations of the artefacts, of `distilled`, and of who else may be named.

    Raises:
        ConfigError: If the rule names a model that is not there.
    """
    known = {**found, STUDENT: found["distilled"]}
    role = parse_gate(rule, where="--best").role
    if role is not None and role not in known:
        raise ConfigError(
            f"--best: {rule!r} needs {role!r}, which has not answered the test set; there are: "
            f"{', '.join((STUDENT, *found))}"
        )
    rows = []
    for name, num_bytes in sizes.items():
        (one,) = check_gates([rule], known, student=name)
        rows.append(Held(name=name, num_bytes=num_bytes, holds=one["passed"], found=one["found"]))
    return sorted(rows, key=lambda row: (row.num_bytes, row.name))


def first_that_holds(rows: list[Held], rule: str) -> Held:
    """The smallest artefact that a rule holds for.

    Raises:
        ExportError: If it holds for none.
    """
    for row in rows:
        if row.holds:
            return row
    told = "; ".join(f"{row.name} {row.found}" for row in rows)
    raise ExportError(f"no artefact holds {rule}: {told}. Export one with more bits, or ask less")


def made(run: RunDir, names: tuple[str, ...]) -> tuple[str, ...]:
    """Artefacts of the config, and those that were made in the run's folder besides."""
    found = list(names)
    for folder in sorted(run.exports.glob("[!.]*")):
        manifest = read_manifest(folder)
        for name in (f"{manifest.format}:{manifest.quant}", manifest.format):
            if run.export(name) == folder:
                found.append(name)
    return tuple(dict.fromkeys(found))


def _refuse_other_records(run: RunDir, role: str, names: list[str]) -> None:
    """Shares of two different test sets say nothing about each other."""
    own = _asked(run, "distilled" if role == STUDENT else role)
    other = [name for name in names if _asked(run, name) != own]
    if other:
        raise ConfigError(
            f"{', '.join(other)} answered other records than {role}; evaluate again: potstill "
            f"evaluate {run.path}"
        )


def _asked(run: RunDir, role: str) -> set[tuple[str, int]]:
    path: Path = run.samples(role)
    return {(sample.record_id, sample.turn) for sample in read_jsonl(path, Sample)}
