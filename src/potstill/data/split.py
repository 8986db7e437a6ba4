"""Training, validation and test records that share nothing.

Who goes where is decided by a hash of the record's id (or of its group), so adding rows never
moves others from one side to another.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from potstill.data.ngrams import FEWEST_NGRAMS, NEAR, ngrams, template_ngrams, without
from potstill.data.words import fold
from potstill.errors import DataError
from potstill.types import Record, Rejection


class Splits(NamedTuple):
    """Records by what they are for, and what was dropped on the way."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    rejected: list[Rejection]


def split_records(
    records: Sequence[Record],
    *,
    validation: float,
    test: float | None = None,
    split_by: Literal["record", "group", "time"] = "record",
    group_by: str | None = None,
    seed: int = 0,
) -> Splits:
    """Divides records by hash of their id, by group, or by time (the latest are the test).

    Exact duplicates of a prompt are dropped first, the first one kept. A share above 0 gives
    at least one record; shares are met on average, not exactly, except by time.

    Raises:
        DataError: If a record lacks the field to split by, or there are too few to divide.
    """
    share = test or 0.0
    if not (0 <= validation < 1 and 0 <= share < 1 and validation + share < 1):
        raise DataError(
            f"validation {validation} and test {share} must be shares that leave something to "
            f"train on; together they must stay below 1"
        )
    if split_by != "record" and not group_by:
        raise DataError(f"split_by {split_by} needs group_by, the metadata field to use")
    kept, rejected = drop_duplicates(records)
    if split_by == "time":
        parts = _by_time(kept, validation, share, group_by or "")
    else:

        def unit(record: Record) -> str:
            return record.id if split_by == "record" else group_of(record, group_by or "")

        parts = _by_hash(kept, validation, share, unit, seed)
    return Splits(*parts, rejected)


def drop_duplicates(records: Iterable[Record]) -> tuple[list[Record], list[Rejection]]:
    """Keeps the first record of every prompt; the later ones come back as rejections."""
    first: dict[Hashable, Record] = {}
    kept, rejected = [], []
    for record in records:
        key = tuple((message.role, message.content.strip()) for message in record.messages)
        earlier = first.setdefault(key, record)
        if earlier is record:
            kept.append(record)
            continue
        other = "" if earlier.reference == record.reference else ", with another answer"
        rejected.append(
            _rejection(record, "duplicate", f"same prompt as record {earlier.id}{other}")
        )
    return kept, rejected


def group_of(record: Record, field: str) -> str:
    """The record's group: a metadata value as text.

    Raises:
        DataError: If the record has no such field.
    """
    value = record.metadata.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        known = ", ".join(record.metadata) or "none"
        raise DataError(
            f"record {record.id} has no metadata field {field!r} to split by; its fields are: "
            f"{known}. Fill it in every row, or name another in data.group_by"
        )
    return str(value)


def _by_hash(
    records: list[Record],
    validation: float,
    test: float,
    unit: Callable[[Record], str],
    seed: int,
) -> tuple[list[Record], list[Record], list[Record]]:
    keys = [unit(record) for record in records]
    place = {key: _place(key, seed) for key in keys}
    ordered = sorted(place, key=place.__getitem__)
    _check_enough(len(ordered), validation, test, "records or groups")
    # Test takes the low end of [0, 1) and validation the high end: neither border moves
    # when the other share changes.
    side = {
        key: "test" if at < test else "validation" if at >= 1 - validation else "train"
        for key, at in place.items()
    }
    if test and "test" not in side.values():
        side[ordered[0]] = "test"
    if validation and "validation" not in side.values():
        side[ordered[-1]] = "validation"
    if "train" not in side.values():
        low, high = (1 if test else 0), len(ordered) - (1 if validation else 0)
        side[ordered[(low + high) // 2]] = "train"
    parts: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    for record, key in zip(records, keys, strict=True):
        parts[side[key]].append(record)
    return parts["train"], parts["validation"], parts["test"]


def _place(key: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _check_enough(num: int, validation: float, test: float, what: str) -> None:
    needed = 1 + bool(validation) + bool(test)
    if num < needed:
        raise DataError(
            f"{num} different {what} cannot be divided into {needed} parts; give more, or a file "
            f"of its own for data.validation or data.test"
        )


def _by_time(
    records: list[Record], validation: float, test: float, field: str
) -> tuple[list[Record], list[Record], list[Record]]:
    times = {id(record): _time_of(record, field) for record in records}
    ordered = sorted(records, key=lambda record: times[id(record)])
    _check_enough(len(set(times.values())), validation, test, "times")

    def cut(end: int, share: float) -> int:
        """Where the last `share` of all begins, at or before which equal times stay together."""
        if not share:
            return end
        start = min(end - 1, end - round(share * len(ordered)))
        while 0 < start and times[id(ordered[start])] == times[id(ordered[start - 1])]:
            start -= 1
        return start

    test_start = cut(len(ordered), test)
    validation_start = cut(test_start, validation) if test_start else 0
    if not validation_start:
        raise DataError(
            f"too many records share their {field!r} to divide them by time; use finer times, "
            f"other shares, or split_by: record"
        )
    return (
        ordered[:validation_start],
        ordered[validation_start:test_start],
        ordered[test_start:],
    )


def _time_of(record: Record, field: str) -> float:
    text = group_of(record, field)
    try:
        return float(text)
    except ValueError:
        pass  # not a number of seconds, so it must be a date
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"record {record.id}: {field} is {text!r}, which is neither a number nor an ISO 8601 "
            f"time such as 2026-01-31T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def find_leaks(
    train: Sequence[Record],
    test: Sequence[Record],
    *,
    group_by: str | None = None,
    threshold: float = NEAR,
) -> list[Rejection]:
    """Training records whose prompt (nearly) stands in the test records, one rejection each.

    Reason `leak`: the folded prompts are equal, or both belong to one group. Reason
    `near_duplicate`: Jaccard similarity of their character 5-grams is at least `threshold`,
    5-grams of the template left out (an instruction common to many rows says nothing). The
    similarity is exact: each training prompt is looked up in an index of the test prompts.
    """
    exact = {_key(record): record for record in reversed(test)}
    groups = {group_of(r, group_by): r for r in reversed(test)} if group_by else {}
    rest: list[Record] = []
    leaks: dict[int, Rejection] = {}
    for index, record in enumerate(train):
        twin = exact.get(_key(record))
        if twin is not None:
            leaks[index] = _rejection(record, "leak", f"same prompt as test record {twin.id}")
        elif group_by and (twin := groups.get(group_of(record, group_by))):
            detail = f"same {group_by} as test record {twin.id}"
            leaks[index] = _rejection(record, "leak", detail)
        else:
            rest.append(record)
    near = _near_duplicates(rest, list(exact.values()), train, threshold)
    by_identity = {id(record): rejection for record, rejection in near}
    found = [leaks.get(i) or by_identity.get(id(record)) for i, record in enumerate(train)]
    return [rejection for rejection in found if rejection]


def drop_leaks(train: Sequence[Record], leaks: Iterable[Rejection]) -> list[Record]:
    """Training records without those that `find_leaks` named."""
    named = {leak.record_id for leak in leaks}
    return [record for record in train if record.id not in named]


def _rejection(record: Record, reason: str, detail: str) -> Rejection:
    return Rejection(record_id=record.id, check="split", reason=reason, detail=detail)


def _asked(record: Record) -> str:
    """What is compared: all turns but the system's, which many rows share."""
    return "\n".join(m.content for m in record.messages if m.role != "system")


def _key(record: Record) -> str:
    return fold(_asked(record))


def _near_duplicates(
    train: Sequence[Record], test: Sequence[Record], all_train: Sequence[Record], threshold: float
) -> list[tuple[Record, Rejection]]:
    if not train or not test:
        return []
    templates = template_ngrams(_key(record) for record in [*all_train, *test])
    owns = [without(ngrams(_key(record)), templates) for record in test]
    usable = [index for index, own in enumerate(owns) if len(own) >= FEWEST_NGRAMS]
    if not usable:
        return []
    sizes = np.array([len(own) for own in owns])
    keys = np.concatenate([owns[index] for index in usable])
    rows = np.concatenate([np.full(len(owns[index]), index) for index in usable])
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    found = []
    for record in train:
        own = without(ngrams(_key(record)), templates)
        if len(own) < FEWEST_NGRAMS:
            continue
        shared = _shared(own, keys, rows, len(test))
        similarity = shared / (len(own) + sizes - shared)
        best = int(similarity.argmax())
        if similarity[best] >= threshold:
            detail = f"{similarity[best]:.2f} similar to test record {test[best].id}"
            found.append((record, _rejection(record, "near_duplicate", detail)))
    return found


def _shared(own: np.ndarray, keys: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """How many n-grams of `own` each test row has too, by an index sorted by n-gram."""
    low, high = np.searchsorted(keys, own, "left"), np.searchsorted(keys, own, "right")
    counts = high - low
    if not counts.any():
        return np.zeros(num_rows)
    starts = np.repeat(low - np.concatenate([[0], counts.cumsum()[:-1]]), counts)
    hits = rows[starts + np.arange(counts.sum())]
    return np.bincount(hits, minlength=num_rows).astype(float)
