"""Stages load and split: what is asked, and what is kept apart for the comparison."""

from __future__ import annotations

from pathlib import Path

from potstill.data.load import load_dataset
from potstill.data.privacy import describe
from potstill.data.select import Selection
from potstill.data.split import drop_duplicates, drop_leaks, find_leaks, split_records
from potstill.errors import ConfigError, DataError
from potstill.pipeline.context import Context
from potstill.pipeline.preflight import privacy_key, privacy_of
from potstill.rundir import read_jsonl, write_jsonl
from potstill.tasks.choice import label_records
from potstill.types import Record, Rejection


def load(ctx: Context) -> None:
    """Reads the training files into one file of records."""
    config, run, data = ctx.config, ctx.run, ctx.config.data
    privacy = privacy_of(ctx)
    rules = (data.format, data.where, data.logged_answers, data.feedback)
    inputs = (config.task, data.columns, *rules, *privacy_key(ctx), *config.train_data)

    def work() -> dict[str, object]:
        selection = Selection(
            format=data.format,
            where=data.where,
            feedback=data.feedback,
            needs_answer=data.logged_answers == "reuse",
        )
        files = config.train_data[0] if len(config.train_data) == 1 else config.train_data
        records, replaced = privacy.conceal(
            load_dataset(files, columns=data.columns, task=config.task, selection=selection),
            keep=_kept(ctx),
        )
        _refuse_conflicting_ids(records)
        write_jsonl(run.records, records)
        num_references = sum(record.reference is not None for record in records)
        text = f"{len(records):,} records, {num_references:,} with a known answer"
        if selection.left_out:
            text += f"; left out {selection}"
        if replaced:
            text += f"; replaced {describe(replaced)}"
        return {
            "num_records": len(records),
            "num_references": num_references,
            "left_out": dict(selection.left_out),
            "replaced": dict(replaced),
            "text": text,
        }

    ctx.stage("load", inputs, work)


def _kept(ctx: Context) -> tuple[str, ...]:
    """Metadata that is never replaced: a group must stay one over all its records."""
    return (ctx.config.data.group_by,) if ctx.config.data.group_by else ()


def split(ctx: Context) -> None:
    """Deals the records into training, validation and test, and refuses leaks between them."""
    config, run = ctx.config, ctx.run
    data = config.data
    files = [
        value for value in (data.validation, data.test, *data.keep_out) if isinstance(value, Path)
    ]

    def work() -> dict[str, object]:
        records = read_jsonl(run.records, Record)
        splits = split_records(
            records,
            validation=0.0 if isinstance(data.validation, Path) else data.validation,
            test=None if isinstance(data.test, Path) else data.test,
            split_by=data.split_by,
            group_by=data.group_by,
            seed=config.train.seed,
        )
        train, validation, test = list(splits.train), list(splits.validation), list(splits.test)
        dropped = list(splits.rejected)
        if isinstance(data.validation, Path):
            reused = data.logged_answers == "reuse"  # the student is watched on them
            validation = _held_out(ctx, data.validation, dropped, needs_answer=reused)
        if isinstance(data.test, Path):
            test = _held_out(ctx, data.test, dropped)
        train, validation, test = _same_labels(train, validation, test)
        group_by = data.group_by if data.split_by == "group" else None
        others = [(_held_out(ctx, path, []), None) for path in data.keep_out]
        for held_out, grouped in ((test, group_by), *others):
            leaks = find_leaks(validation, held_out, group_by=grouped)
            validation, dropped = drop_leaks(validation, leaks), dropped + leaks
            leaks = find_leaks(train, held_out, group_by=grouped)
            train, dropped = drop_leaks(train, leaks), dropped + leaks
        leaks = find_leaks(train, validation, group_by=group_by)
        train, dropped = drop_leaks(train, leaks), dropped + leaks
        if not train:
            raise DataError(
                f"no training records are left: {_reasons(dropped)}. Is the test file the "
                f"training file? See {run.leaks}"
            )
        for path, part in ((run.train, train), (run.validation, validation), (run.test, test)):
            write_jsonl(path, part)
        write_jsonl(run.leaks, dropped)
        text = f"{len(train):,} train, {len(validation):,} validation, {len(test):,} test"
        if dropped:
            text += f"; dropped {_reasons(dropped)}"
        return {
            "num_train": len(train),
            "num_validation": len(validation),
            "num_test": len(test),
            "num_dropped": len(dropped),
            "text": text,
        }

    inputs = (data, *privacy_key(ctx), config.train.seed, run.records, *files)
    ctx.stage("split", inputs, work)


def training_prompts(ctx: Context) -> Path:
    """The file of what the teacher is asked for training: real prompts, and those it wrote."""
    return ctx.run.train if ctx.config.data_generation is None else ctx.run.prompts


def gold_records(ctx: Context) -> list[Record]:
    """Records with known answers for the students that learn without a teacher.

    Raises:
        ConfigError: If there are none.
    """
    config = ctx.config
    if config.evaluate.gold_data:
        records = records_of(ctx, config.evaluate.gold_data)
    else:
        records = read_jsonl(ctx.run.train, Record)
    known = [record for record in records if record.reference is not None]
    if not known:
        raise ConfigError(
            "evaluate.baselines names gold_few or gold_all, but no record has a known answer; "
            "leave them out, or name a file with answers in evaluate.gold_data"
        )
    return known


def _held_out(
    ctx: Context, path: Path, dropped: list[Rejection], *, needs_answer: bool = False
) -> list[Record]:
    """A validation or test file's records; repeated prompts go to `dropped`."""
    kept, repeated = drop_duplicates(records_of(ctx, path, Selection(needs_answer=needs_answer)))
    dropped += repeated
    return kept


def records_of(ctx: Context, path: Path, selection: Selection | None = None) -> list[Record]:
    """Records of a file as the run works with them: personal data replaced where it is to be."""
    config = ctx.config
    records = load_dataset(path, columns=config.data.columns, task=config.task, selection=selection)
    if not config.data.privacy.in_data:
        return records
    return privacy_of(ctx).conceal(records, keep=_kept(ctx))[0]


def _same_labels(*parts: list[Record]) -> list[list[Record]]:
    """All parts with the label set of all of them, so that their prompts name the same labels.

    Only rows whose label set was gathered from their file have one; ready prompts name theirs.
    """
    sets = [
        record.metadata["labels"]
        for part in parts
        for record in part
        if "labels" in record.metadata
    ]
    if not sets:
        return list(parts)
    labels = sorted({str(label) for known in sets for label in known})
    return [label_records(part, labels) for part in parts]


def _refuse_conflicting_ids(records: list[Record]) -> None:
    seen: dict[str, Record] = {}
    for record in records:
        other = seen.setdefault(record.id, record)
        if other.messages != record.messages:
            raise DataError(
                f"two records in train_data have the id {record.id!r} and different prompts; "
                f"ids must be unique over all files, or absent"
            )


def _reasons(dropped: list[Rejection]) -> str:
    counts: dict[str, int] = {}
    for rejection in dropped:
        counts[rejection.reason] = counts.get(rejection.reason, 0) + 1
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
