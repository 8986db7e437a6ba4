"""Files to rows: JSON Lines, JSON, CSV, Parquet and plain text, each row with its place.

A row is what the file says, before anyone asks what it means (`shapes`). What cannot be
read becomes a problem with its place, so that all problems of a file are told at once.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import difflib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import DataError, MissingExtra

JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
TEXTS = (".txt", ".text", ".md")
UTF8_BOM = b"\xef\xbb\xbf"
LONGEST_CELL_BYTES = 1 << 30


class Row(NamedTuple):
    """One row of a file, or what is wrong with it."""

    where: str
    """`train.jsonl:17`."""

    value: Any
    problem: str = ""


class _BadText(Exception):
    """Bytes that are not UTF-8; the message says which."""


def iter_rows(path: Path) -> Iterator[Row]:
    """Rows of a file in its order; a broken row comes with its problem.

    Raises:
        DataError: If the file is missing, empty, or of a kind that is not read here.
        MissingExtra: If it is Parquet and pyarrow is not installed.
    """
    _check_file(path)
    kind = path.suffix.lower()
    if kind in JSON_LINES:
        return _json_array(path) if _first_byte(path) == b"[" else _json_lines(path)
    if kind in TABLES:
        return _table(path)
    if kind in TEXTS:
        return _plain_text(path)
    if kind == ".parquet":
        return _parquet(path)
    raise DataError(
        f"{path}: files ending in {kind or 'nothing'} are not read; give JSONL, JSON, CSV, "
        f"Parquet or plain text (.jsonl .json .csv .tsv .parquet .txt)"
    )


def _check_file(path: Path) -> None:
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        raise DataError(f"{path}: data is read from files; download it and give the file's path")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())[:5]
        raise DataError(
            f"{path} is a folder; give a file in it: {', '.join(inside) or 'it is empty'}"
        )
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.parent / close[0]}?" if close else "check the path"
        raise DataError(f"{path}: no such file; {hint}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; it needs one row for each prompt")


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(UTF8_BOM).lstrip()[:1]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines. Only a line feed ends a line: U+2028 may stand inside a string."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(UTF8_BOM) if number == 1 else line


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wide = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "this looks like UTF-16" if wide else f"byte {error.start + 1} of the line is 0x"
        found += "" if wide else f"{line[error.start]:02x}, which is not UTF-8"
        raise _BadText(f"{found}; save the file as UTF-8") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null or leave the key out")


def _load_json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _broken(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return (
            f"broken JSON: {error.msg} at column {error.colno}; "
            f"each line must be one whole JSON object"
        )
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    return f"broken JSON: {error}"


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            yield Row(where, _load_json(_decode(line)))
        except _BadText as error:
            yield Row(where, None, str(error))
        except (ValueError, RecursionError) as error:
            if number == 1 and line.strip() in (b"{", b'{"'):
                yield from _one_object(path)
                return
            yield Row(where, None, _broken(error))


def _one_object(path: Path) -> Iterator[Row]:
    """A JSON object written over many lines: a list of rows under some key, or one row."""
    try:
        tree = _load_json(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield Row(f"{path}:1", None, f"byte {error.start + 1} of the file is not UTF-8")
        return
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        yield Row(f"{path}:{line}", None, _broken(error))
        return
    lists = [value for value in tree.values() if _is_rows(value)]
    if len(lists) == 1 and "messages" not in tree:
        for index, row in enumerate(lists[0], start=1):
            yield Row(f"{path}:row {index}", row)
    else:
        yield Row(f"{path}:1", tree)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _json_array(path: Path) -> Iterator[Row]:
    """Elements of a JSON array, each with the line it begins on."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        yield Row(f"{path}:{line}", None, "a byte that is not UTF-8; save the file as UTF-8")
        return
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    at, line = text.index("[") + 1, 1
    line += text.count("\n", 0, at)
    while True:
        start = at
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", start, at)
        if text[at : at + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield Row(f"{path}:{line}", None, f"{_broken(error)}; the rest was not read")
            return
        yield Row(f"{path}:{line}", value)
        line += text.count("\n", at, end)
        at = end


def _table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL_BYTES)  # 128 KiB by default; documents are longer
    lines = (_decode(line) for _, line in _lines(path))
    before = 0
    try:
        first = next(lines)
        reader = csv.reader(chain([first], lines), delimiter=_delimiter(path, first), strict=True)
        header = [name.strip() for name in next(reader)]
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            yield Row(f"{path}:1", None, f"two columns are called {sorted(twice)[0]!r}")
            return
        before = reader.line_num
        for cells in reader:
            where, before = f"{path}:{before + 1}", reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                yield Row(
                    where,
                    None,
                    f"{len(cells)} cells where the header has {len(header)}; put cells that "
                    f'hold commas or line breaks in "quotes"',
                )
                continue
            yield Row(where, {k: v for k, v in zip(header, cells, strict=True) if v.strip()})
    except _BadText as error:
        yield Row(f"{path}:{_bad_line(path)}", None, str(error))
    except csv.Error as error:
        yield Row(f"{path}:{before + 1}", None, f"broken CSV: {error}; the rest was not read")


def _bad_line(path: Path) -> int:
    for number, line in _lines(path):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return number
    raise AssertionError(f"{path} changed while it was read")


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    # Spreadsheets set to a decimal comma write semicolons into files called .csv.
    return max(",;\t", key=header.count) if any(c in header for c in ",;\t") else ","


def _plain_text(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            text = _decode(line).rstrip("\r\n")
        except _BadText as error:
            yield Row(where, None, str(error))
            continue
        if text.strip():
            yield Row(where, {"prompt": text})


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(
            f'{path}: reading Parquet needs an extra: pip install "potstill[data]"'
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        count = 0
        for batch in file.iter_batches(batch_size=512):
            for value in batch.to_pylist():
                count += 1
                filled = {k: as_json(v) for k, v in value.items() if v is not None}
                yield Row(f"{path}:row {count}", filled)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file: {str(error).splitlines()[0]}") from None


def as_json(value: Any) -> Any:
    """A value that JSON can hold: dates as ISO 8601, decimals as text, containers inside too."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value
