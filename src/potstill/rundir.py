"""The run folder: the only file that knows the names inside it.

The run folder is the contract between all parts of the house. A stage reads files here,
writes files here, and marks itself done with the hash of what it depended on; a stage
whose hash has changed runs again, and so does everything after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from pydantic import BaseModel

from potstill.errors import DataError, RunLocked

STAGES = (
    "load",
    "split",
    "expand",
    "teach",
    "check",
    "score",
    "train",
    "evaluate",
    "compare",
    "report",
    "export",
)

N = TypeVar("N", bound=BaseModel)


class RunDir:
    """Typed paths of one run, its marks and its lock."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    config = property(lambda self: self.path / "config.yaml")
    environment = property(lambda self: self.path / "environment.json")
    data = property(lambda self: self.path / "data")
    records = property(lambda self: self.path / "data" / "records.jsonl")
    train = property(lambda self: self.path / "data" / "train.jsonl")
    validation = property(lambda self: self.path / "data" / "validation.jsonl")
    synthetic = property(lambda self: self.path / "data" / "synthetic.jsonl")
    unused_prompts = property(lambda self: self.path / "data" / "unused-prompts.jsonl")
    prompts = property(lambda self: self.path / "data" / "prompts.jsonl")
    test = property(lambda self: self.path / "data" / "test.jsonl")
    responses = property(lambda self: self.path / "data" / "responses")
    accepted = property(lambda self: self.path / "data" / "accepted.jsonl")
    accepted_validation = property(lambda self: self.path / "data" / "accepted-validation.jsonl")
    rejected = property(lambda self: self.path / "data" / "rejected.jsonl")
    quality = property(lambda self: self.path / "data" / "quality.json")
    leaks = property(lambda self: self.path / "data" / "leaks.jsonl")
    judgments = property(lambda self: self.path / "judgments")
    targets = property(lambda self: self.path / "targets")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    events = property(lambda self: self.path / "events.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    model = property(lambda self: self.path / "model")
    adapter = property(lambda self: adapter_of(self.model))
    untouched = property(lambda self: self.path / "untouched")
    cut = property(lambda self: self.path / "untouched" / "cut.json")
    reports = property(lambda self: self.path / "reports")
    report_json = property(lambda self: self.path / "reports" / "report.json")
    report_html = property(lambda self: self.path / "reports" / "report.html")
    report_markdown = property(lambda self: self.path / "reports" / "report.md")
    blind_page = property(lambda self: self.path / "blind.html")
    exports = property(lambda self: self.path / "exports")
    dataset_card = property(lambda self: self.path / "data" / "README.md")
    done = property(lambda self: self.path / "done")

    def samples(self, role: str) -> Path:
        """Where the answers of one model to the test set are kept."""
        return self.reports / f"samples-{_safe(role)}.jsonl"

    def evaluation(self, role: str) -> Path:
        """Where the evaluation of one model is kept."""
        return self.reports / f"evaluation-{_safe(role)}.json"

    def general(self, role: str) -> Path:
        """Folder of what lm-eval wrote about one model."""
        return self.reports / "lm-eval" / _safe(role)

    def evaluations(self) -> list[Path]:
        """Evaluations that are there."""
        return sorted(self.reports.glob("evaluation-*.json"))

    def ballots(self, pair: str) -> Path:
        """Where the choices of a judge between two models are kept."""
        return self.reports / f"ballots-{_safe(pair)}.jsonl"

    def variant(self, name: str) -> RunDir:
        """Folder of a student trained for comparison, laid out like a run."""
        return RunDir(self.path / "variants" / _safe(name))

    def audition(self) -> RunDir:
        """Folder of what candidates said to rows with known answers, laid out like a run."""
        return RunDir(self.path / "audition")

    def export(self, name: str) -> Path:
        """Folder of one artefact, such as gguf:q8_0."""
        return self.exports / _safe(name)

    def round(self, number: int) -> Path:
        """Training prompts that are asked in one round, where rows are counted."""
        return self.data / "rounds" / f"{number:03d}.jsonl"

    def mark(self, stage: str) -> Path:
        """The file that says that a stage is done."""
        return self.done / f"{_safe(stage)}.json"

    def is_done(self, stage: str, inputs: str) -> bool:
        """Whether the stage was finished with exactly these inputs (a hash)."""
        try:
            return json.loads(self.mark(stage).read_text(encoding="utf-8"))["inputs"] == inputs
        except (OSError, ValueError, KeyError):
            return False

    def mark_done(self, stage: str, inputs: str, **facts: Any) -> None:
        """Writes the stage's mark; the last thing a stage does."""
        mark = {"inputs": inputs, "finished_at": time.time(), **facts}
        write_text(self.mark(stage), json.dumps(mark, ensure_ascii=False, indent=1) + "\n")

    def facts(self, stage: str) -> dict[str, Any]:
        """What the stage noted when it finished; empty when it has not."""
        try:
            return json.loads(self.mark(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the run for this process; the lock ends with the process, however it ends.

        Raises:
            RunLocked: If another process holds it.
        """
        return locked(self.path)


def adapter_of(model: Path) -> Path:
    """Folder of the LoRA adapter that was merged into a trained model, beside it."""
    return model.with_name("adapter")


class LedgerDir:
    """Typed paths of the teacher's answers: segments, their index, and what was damaged."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    index = property(lambda self: self.path / "index.sqlite")
    batches = property(lambda self: self.path / "batches.sqlite")

    def batch_input(self, intent: str) -> Path:
        """What a provider's batch is made of, while it is under way."""
        return self.path / f"batch-{intent}-input.jsonl"

    def batch_output(self, intent: str, number: int) -> Path:
        """What a provider's batch brought, until it is among the answers."""
        return self.path / f"batch-{intent}-output-{number}.jsonl"

    def batch_files(self) -> list[Path]:
        """Inputs and outputs of batches that are there."""
        return sorted(self.path.glob("batch-*.jsonl"))

    def segment(self, number: int) -> Path:
        """Answers in the order of their arrival, one a line."""
        return self.path / f"answers-{number:05d}.jsonl"

    def damaged(self, number: int) -> Path:
        """Lines of a segment that cannot be read any more, as they were found."""
        return self.path / f"damaged-{number:05d}.jsonl"

    def segments(self) -> list[int]:
        """Numbers of the segments that are there."""
        names = (path.stem.removeprefix("answers-") for path in self.path.glob("answers-*.jsonl"))
        return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with the process, however it ends.

    Raises:
        RunLocked: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RunLocked(
                f"{folder} is in use by process {owner}; wait for it, or end it and "
                f"run the same command again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def content_hash(*parts: Any) -> str:
    """SHA-256 over values and files: a Path counts by its content, a folder by its files'."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            _hash_path(digest, part)
        elif isinstance(part, BaseModel):
            digest.update(json.dumps(part.model_dump(mode="json"), sort_keys=True).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _hash_path(digest: Any, path: Path) -> None:
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(str(file.relative_to(path)).encode())
            _hash_path(digest, file)
    elif path.exists():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(b"absent")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Gives a text file to fill, and moves it to `path` only when that went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none: beside its place first, then moved over it."""
    with whole_file(path) as file:
        file.write(text)


def write_jsonl(path: Path, nouns: Iterable[BaseModel]) -> int:
    """Writes one noun a line, the whole file or none. Returns how many."""
    count = 0
    with whole_file(path) as file:
        for noun in nouns:
            file.write(json_line(noun))
            count += 1
    return count


def json_line(noun: BaseModel) -> str:
    """A noun as a line of a JSONL file."""
    return noun.model_dump_json(exclude_defaults=True) + "\n"


def read_jsonl(path: Path, noun: type[N]) -> list[N]:
    """Reads what `write_jsonl` or an append wrote; a last line cut by a crash is dropped.

    Raises:
        DataError: If a line inside the file cannot be read.
    """
    return list(iter_jsonl(path, noun))


def iter_jsonl(path: Path, noun: type[N]) -> Iterator[N]:
    """What `read_jsonl` reads, one by one."""
    return iter(JsonLines(path, noun))


class JsonLines(Generic[N]):
    """A file of nouns, one a line: read as often as wanted, and never as a whole."""

    def __init__(self, path: Path, noun: type[N]):
        self.path, self._noun = path, noun

    def __iter__(self) -> Iterator[N]:
        return (found for _, found in self.without(()))

    def num_lines(self) -> int:
        """How many there are, without looking into them."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))

    def without(self, left_out: Iterable[int]) -> Iterator[tuple[int, N]]:
        """The nouns with their places, from 0, but for places that are not even looked at.

        Args:
            left_out: Places in ascending order.

        Raises:
            DataError: If a line cannot be read.
        """
        if not self.path.exists():
            return
        places = iter(left_out)
        skipped = next(places, None)
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    return
                if number == skipped:
                    skipped = next(places, None)
                    continue
                try:
                    found = self._noun.model_validate_json(line)
                except ValueError as error:
                    raise DataError(
                        f"{self.path}:{number + 1}: not a {self._noun.__name__}: "
                        f"{str(error).splitlines()[0]}; delete the line to have it made again"
                    ) from None
                yield number, found


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, and moves it to `path` only when that went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with disk_errors(path):
            yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises a disk's failure as OSError, with its number and `path`, whichever library wrote.

    safetensors and tokenizers have classes of their own and tell the number in the message
    alone; a full disk would pass for a fault of ours.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error


def crc32_of(path: Path) -> int:
    """The checksum of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
