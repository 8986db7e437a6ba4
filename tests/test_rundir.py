"""Files in a run folder are written whole or not at all, and a mark knows its inputs."""

import os
import subprocess
import sys

import pytest

from potstill.errors import DataError, RunLocked
from potstill.rundir import (
    RunDir,
    content_hash,
    read_jsonl,
    whole_folder,
    write_jsonl,
    write_text,
)
from potstill.types import Message, Record


def record(i: int) -> Record:
    return Record(id=str(i), messages=(Message(role="user", content=f"पानी {i}\u2028"),))


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "records.jsonl"
    assert write_jsonl(path, [record(0), record(1)]) == 2
    assert read_jsonl(path, Record) == [record(0), record(1)]


def test_a_last_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [record(0)])
    with path.open("a") as file:
        file.write('{"id": "1", "mess')
    assert read_jsonl(path, Record) == [record(0)]


def test_a_damaged_line_inside_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [record(0)])
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(DataError, match=r"records.jsonl:1: not a Record"):
        read_jsonl(path, Record)


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stopped")
    assert os.listdir(tmp_path) == []
    with whole_folder(tmp_path / "model") as folder:
        (folder / "all").write_text("x")
    assert (tmp_path / "model" / "all").read_text() == "x"


def test_a_stage_is_done_for_its_inputs_only(tmp_path):
    run = RunDir(tmp_path)
    run.mark_done("teach", "abc", text="3 responses")
    assert run.is_done("teach", "abc")
    assert not run.is_done("teach", "abd")
    assert not run.is_done("train", "abc")
    assert run.facts("teach")["text"] == "3 responses"


def test_a_hash_sees_the_content_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_text("1")
    before = content_hash("x", tmp_path / "a"), content_hash(tmp_path)
    (tmp_path / "a").write_text("2")
    after = content_hash("x", tmp_path / "a"), content_hash(tmp_path)
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert content_hash("x", tmp_path / "a") == after[0]


def test_a_second_process_is_refused(tmp_path):
    code = (
        "import sys; from potstill.rundir import RunDir\n"
        "with RunDir(sys.argv[1]).locked():\n    print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunLocked, match=f"process {other.pid}"), RunDir(tmp_path).locked():
        pass
    other.kill()
    other.wait()
    with RunDir(tmp_path).locked():
        pass
