"""The workspace file is found, read and criticised as a whole."""

import logging

import pytest

from potstill.errors import ConfigError
from potstill.jobs.workspace import find_workspace


def test_the_nearest_file_above_is_found(tmp_path, monkeypatch):
    (tmp_path / "potstill.yaml").write_text("models: {a: ./m, b: org/name, c: {url: 'http://x'}}")
    below = tmp_path / "one" / "two"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("POTSTILL_HOME")
    workspace = find_workspace()
    assert workspace.home == tmp_path / ".potstill"
    assert workspace.models == {
        "a": {"source": str(tmp_path / "m")},
        "b": {"source": "org/name"},
        "c": {"url": "http://x"},
    }


def test_the_variable_names_a_file_elsewhere(tmp_path, monkeypatch):
    file = tmp_path / "elsewhere.yaml"
    file.write_text("parallel_jobs: 3")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("POTSTILL_CONFIG", str(file))
    assert find_workspace().parallel_jobs == 3


def test_without_a_file_the_local_workspace_is_said_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POTSTILL_HOME")
    with caplog.at_level(logging.WARNING):
        workspace = find_workspace()
    assert workspace.home == tmp_path / ".potstill"
    assert [str(workspace.home) in record.getMessage() for record in caplog.records] == [True]


def test_the_file_may_be_given(tmp_path):
    (tmp_path / "potstill.yaml").write_text("home: here")
    assert find_workspace(tmp_path).home == tmp_path / "here"
    with pytest.raises(ConfigError, match="no such workspace file"):
        find_workspace(tmp_path / "absent.yaml")


def test_all_problems_are_named(tmp_path):
    (tmp_path / "potstill.yaml").write_text(
        "modles: {}\nparallel_jobs: 0\nhome: 3\n"
        "models: {a: {sorce: x}, b: {url: 'http://x', key: sk-1}, c: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        find_workspace(tmp_path)
    text = str(caught.value)
    assert "modles: no such key; did you mean models?" in text
    assert "models.a.sorce: no such key; did you mean source" in text
    assert "models.b: key must say where the key is" in text and "sk-1" not in text
    assert "models.c" in text
    assert "home: must be a folder" in text


def test_the_home_is_private_and_ignored_by_version_control(tmp_path):
    (tmp_path / "potstill.yaml").write_text("home: here")
    workspace = find_workspace(tmp_path)
    workspace.prepare()
    assert workspace.home.stat().st_mode & 0o077 == 0
    assert (workspace.home / ".gitignore").read_text() == "*\n"
