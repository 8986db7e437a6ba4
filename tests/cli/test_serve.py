"""`potstill serve` and `potstill chat`, as they are typed."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from openai import OpenAI
from tiny import tiny_llama

from potstill.cli import main
from potstill.console import clean


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


class Typed(io.StringIO):
    """Lines that somebody types."""

    def isatty(self):
        return True


@pytest.mark.slow
def test_a_served_folder_answers_until_ctrl_c(folder, tmp_path):
    command = [sys.executable, "-m", "potstill.cli", "serve", str(folder), "--port", "0", "--json"]
    log = ["--log", str(tmp_path / "log.jsonl"), "--name", "tiny"]
    with subprocess.Popen([*command, *log], stdout=subprocess.PIPE, text=True) as process:
        told = ""
        while not told.rstrip().endswith("}"):
            told += process.stdout.readline() or pytest.fail("it ended")
        place = json.loads(told)
        assert place["model"] == "tiny"
        client = OpenAI(base_url=place["url"], api_key="none", timeout=30)
        messages = [{"role": "user", "content": "Hi"}]
        found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
        assert found.usage.completion_tokens == 3
        health = place["url"].replace("/v1", "/health")
        assert urllib.request.urlopen(health).status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-thing",), "no model is called"),
        (("MODEL", "--host", "0.0.0.0"), "--api-key env:NAME"),
        (("MODEL", "--api-key", "s3cret"), "env:NAME or file:PATH"),
        (("MODEL", "--api-key", "env:NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("MODEL", "--task", "math"), "--shadow"),
        (("MODEL", "--fallback", "no-such-teacher"), "no model is called"),
    ],
)
def test_what_cannot_be_served_is_said_with_exit_code_2(folder, capsys, arguments, words):
    assert run("serve", *(str(folder) if a == "MODEL" else a for a in arguments)) == 2
    assert words in capsys.readouterr().err


def test_a_run_stands_for_its_student(folder, tmp_path, capsys):
    run_folder = tmp_path / "runs" / "faq"
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text("name: faq\n")
    assert run("serve", "faq", "--runs", str(tmp_path / "runs")) == 2
    assert "has no student yet" in capsys.readouterr().err
    from potstill.serve.opening import student_of

    (run_folder / "model").symlink_to(folder)
    assert student_of("faq", tmp_path / "runs") == (str(run_folder / "model"), "faq")


def test_a_prompt_from_a_pipe_is_answered_on_standard_output(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is my order?\n"))
    assert run("chat", str(folder), "--max-new-tokens", "6") == 0
    out, err = capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is my order?"))
    assert run("chat", str(folder), "--max-new-tokens", "6", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    # What could move the cursor is not sent to a terminal as it is.
    assert out.rstrip("\n") == clean(told["text"]) and told["num_new_tokens"] == 6
    assert err == ""


def test_an_empty_pipe_asks_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert run("chat", str(folder)) == 2
    assert "standard input is empty" in capsys.readouterr().err


class Parrot:
    """Streams the roles and texts of all it is shown; `!` is pressed Ctrl-C in the middle."""

    name, max_in_flight = "parrot", 1

    def __init__(self, ref):
        self.ref = ref

    async def stream(self, record, sampling, on_token, *, on_text=None):
        import asyncio

        from potstill.types import Response

        text = " ".join(f"{m.role}:{m.content}" for m in record.messages)
        on_text(text[:4])
        if text.endswith("!"):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        on_text(text[4:])
        return Response(record_id=record.id, text=text, finish_reason="stop")

    async def close(self):
        pass


@pytest.fixture
def parrot(tmp_path, monkeypatch):
    """Serves as a model of the workspace."""
    (tmp_path / "bird").write_text("")
    file = tmp_path / "potstill.yaml"
    file.write_text("models:\n  parrot: {source: bird, opener: 'birds:Parrot'}\n")
    monkeypatch.setitem(sys.modules, "birds", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)


def talk(monkeypatch, capsys, *lines, options=()):
    monkeypatch.setattr(sys, "stdin", Typed("".join(f"{line}\n" for line in lines)))
    code = run("chat", "parrot", *options)
    out, err = capsys.readouterr()
    return code, out.replace("> ", "").splitlines(), err


def test_a_conversation_is_remembered_until_it_is_reset(parrot, monkeypatch, capsys):
    lines = ("a", "b", "c", "/reset", "c", "/help", "/exit", "never read")
    code, out, err = talk(monkeypatch, capsys, *lines, options=("--system", "Be kind."))
    assert code == 0
    assert out == [
        "system:Be kind. user:a",
        (two := "system:Be kind. user:a assistant:system:Be kind. user:a user:b"),
        f"{two} assistant:{two} user:c",
        "system:Be kind. user:c",
    ]
    assert err.count("/exit ends") == 2


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal; what a shell runs in the background begins with Ctrl-C switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_breaks_off_an_answer_and_not_the_conversation(
    parrot, heeds_ctrl_c, monkeypatch, capsys
):
    code, out, err = talk(monkeypatch, capsys, "a", "stop!", "b")
    assert code == 0
    assert out == ["user:a", "user", "user:a assistant:user:a user:b", ""]
    assert "broken off" in err
