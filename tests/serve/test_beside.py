"""What stands beside a served model: the teacher it falls back to, its shadow, and the log."""

import asyncio
import json
import threading

import numpy as np
import openai
import pytest
from serve.fakes import Sure
from serve.running import client, counted, running
from tiny import tiny_tokenizer

from potstill.data.load import load_dataset
from potstill.errors import ConfigError, TeacherError
from potstill.models.logprobs import LogprobArrays, pack_logprobs
from potstill.serve.answering import confidence
from potstill.serve.metrics import Metrics
from potstill.serve.requestlog import RequestLog
from potstill.serve.run import Server, Settings, open_door
from potstill.serve.shadow import Shadow
from potstill.tasks import get_task


def ask(server, text="Hi", **changes):
    messages = [{"role": "user", "content": text}]
    return client(server).chat.completions.create(model="student", messages=messages, **changes)


def shadow_of(teacher, metrics, **changes):
    settings = {"share": 1.0, "on_outcome": lambda what: metrics.shadows.labels(what).inc()}
    return Shadow(teacher, **{**settings, **changes})


def shadows(server, outcome):
    return counted(server, f'potstill_shadows_total{{outcome="{outcome}"}}')


def fallbacks(server, outcome):
    return counted(server, f'potstill_fallbacks_total{{outcome="{outcome}"}}')


def test_confidence_is_the_mean_probability_of_the_tokens_and_a_token_untold_has_none():
    ids_NK = np.array([[5, 7], [7, 5], [1, 2]])
    logprobs_NK = np.log([[0.5, 0.25], [0.8, 0.125], [0.5, 0.25]])
    arrays = LogprobArrays(np.array([5, 5, 9]), ids_NK, logprobs_NK, np.zeros(3))
    assert confidence(pack_logprobs(arrays)) == pytest.approx((0.5 + 0.125 + 0) / 3, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_the_teacher_answers_where_the_student_is_not_sure(stream):
    teacher = Sure("teacher")
    with running(Sure(probability=0.4), fallback=teacher, settings={"below": 0.5}) as server:
        raw = client(server).chat.completions.with_raw_response.create(
            model="student", messages=[{"role": "user", "content": "Hi"}], stream=stream
        )
        found = raw.parse()
        if stream:
            chunks = list(found)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            names = {chunk.model for chunk in chunks}
        else:
            text, names = found.choices[0].message.content, {found.model}
        assert (text, names) == ("teacher says Hi", {"teacher"})
        assert raw.headers["X-Potstill-Fallback"] == "teacher"
        assert fallbacks(server, "fell_back") == 1
    assert teacher.is_closed


class Mute(Sure):
    """Tells no probabilities."""

    async def respond(self, record, sampling, *, turn=0, sample=0):
        found = await super().respond(record, sampling)
        return found.model_copy(update={"logprobs": None})


def test_a_model_that_tells_no_probabilities_has_no_fallback():
    model, teacher = Mute("mute"), Sure("teacher")
    server = Server(model, open_door(port=0), Settings(name="x"), fallback=teacher)
    with pytest.raises(ConfigError, match="mute does not tell how probable"):
        asyncio.run(server.run())
    assert model.is_closed and teacher.is_closed


def test_log_probabilities_that_do_not_come_are_not_passed_over():
    model = Mute("mute")
    model.tokenizer = tiny_tokenizer()  # the words would be known
    with running(model) as server, pytest.raises(openai.BadRequestError) as caught:
        ask(server, logprobs=True)
    assert caught.value.param == "logprobs"


def test_a_sure_student_answers_itself():
    teacher = Sure("teacher")
    with running(Sure(probability=0.6), fallback=teacher, settings={"below": 0.5}) as server:
        found = ask(server)
        assert (found.model, found.choices[0].message.content) == ("student", "sure says Hi")
        assert fallbacks(server, "kept") == 1
    assert teacher.asked == []


def test_a_teacher_that_fails_costs_no_answer():
    teacher = Sure("teacher", fails=TeacherError("no"))
    with running(Sure(probability=0.1), fallback=teacher, settings={"below": 0.5}) as server:
        assert ask(server).choices[0].message.content == "sure says Hi"
        assert fallbacks(server, "teacher_failed") == 1


def test_the_shadow_counts_how_often_the_teacher_disagrees():
    teacher, metrics = Sure("teacher", answers={"a": " YES. ", "b": "no"}), Metrics()
    student = Sure(answers={"a": "Yes", "b": "yes", "c": "yes"})
    watchers = [shadow_of(teacher, metrics)]
    with running(student, metrics=metrics, watchers=watchers) as server:
        for text in "aabc":
            ask(server, text)
            asyncio.run(until(lambda: len(teacher.asked) == student.asked.__len__()))
        asyncio.run(until(lambda: shadows(server, "agreed") + shadows(server, "disagreed") == 4))
        assert (shadows(server, "agreed"), shadows(server, "disagreed")) == (2, 2)
    assert "disagreed with 2 of 4 answers: 50.0%" in server.summary()[0]
    assert teacher.is_closed


def test_a_task_reads_what_both_say():
    teacher, metrics = Sure("t", answers={"1+1": "The answer is 2"}), Metrics()
    watchers = [shadow_of(teacher, metrics, task=get_task("math"))]
    with running(Sure(answers={"1+1": "2.0"}), metrics=metrics, watchers=watchers) as server:
        ask(server, "1+1")
        asyncio.run(until(lambda: shadows(server, "agreed") == 1))


def test_only_a_share_of_the_requests_has_a_shadow():
    teacher, metrics = Sure("teacher"), Metrics()
    draws = iter([0.29, 0.31, 0.9])
    watchers = [shadow_of(teacher, metrics, share=0.3, draw=lambda: next(draws))]
    with running(Sure(), metrics=metrics, watchers=watchers) as server:
        for text in "abc":
            ask(server, text)
        asyncio.run(until(lambda: shadows(server, "disagreed") == 1))
    assert teacher.asked == ["a"]


class Stuck(Sure):
    """Never answers."""

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.asked.append(record.messages[-1].content)
        await asyncio.Event().wait()


def test_a_teacher_that_hangs_delays_nobody_and_not_the_end():
    teacher, metrics = Stuck("teacher"), Metrics()
    with running(Sure(), metrics=metrics, watchers=[shadow_of(teacher, metrics)]) as server:
        for number in range(10):
            assert ask(server, str(number)).choices
        asyncio.run(until(lambda: shadows(server, "skipped") == 2))  # eight are waited for
    assert metrics.num_shadows("skipped") == 10


def test_a_shadow_that_fails_is_counted_and_nothing_else():
    metrics = Metrics()
    watchers = [shadow_of(Sure(fails=TeacherError("no")), metrics)]
    with running(Sure(), metrics=metrics, watchers=watchers) as server:
        assert ask(server).choices
        asyncio.run(until(lambda: shadows(server, "failed") == 1))
    assert server.summary() == ["the teacher gave no answer to 1, and 0 were skipped"]


def test_the_log_is_data_to_learn_from_without_personal_data(tmp_path):
    file = tmp_path / "log" / "requests.jsonl"
    student = Sure(answers={"Mail bo@example.org": "I wrote to bo@example.org."})
    with running(student, watchers=[RequestLog(file)]) as server:
        found = ask(server, "Mail bo@example.org", seed=5, stop=["x"])
        list(ask(server, "Hi", stream=True))
    assert "bo@example.org" not in file.read_text()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0]["id"] == f"{found.id}-0"
    assert rows[0]["request"]["seed"] == 5 and rows[0]["request"]["stop"] == ["x"]
    assert rows[0]["response"]["usage"]["completion_tokens"] == 4
    assert rows[0]["seconds"] >= 0 and "first_token_seconds" in rows[1]
    records = load_dataset(file)
    assert [record.messages[-1].content for record in records] == ["Mail [EMAIL_1]", "Hi"]
    assert [record.reference for record in records] == ["I wrote to [EMAIL_1].", "sure says Hi"]


def test_only_a_share_of_the_requests_is_logged(tmp_path):
    draws = iter([0.1, 0.6, 0.4])
    log = RequestLog(tmp_path / "log.jsonl", share=0.5, draw=lambda: next(draws))
    with running(Sure(), watchers=[log]) as server:
        for text in "abc":
            ask(server, text)
    asked = [row.reference for row in load_dataset(tmp_path / "log.jsonl")]
    assert asked == ["sure says a", "sure says c"]


def test_a_log_that_grows_too_large_makes_room(tmp_path):
    log = RequestLog(tmp_path / "log.jsonl", most_bytes=700)
    with running(Sure(), watchers=[log]) as server:
        for text in "abcd":
            ask(server, text)
    files = sorted(path.name for path in tmp_path.glob("log.jsonl*"))
    assert files[:2] == ["log.jsonl", "log.jsonl.1"]
    assert all(path.stat().st_size <= 700 for path in tmp_path.glob("log.jsonl*"))


def test_a_log_that_cannot_be_written_to_costs_rows_and_no_answers():
    from pathlib import Path

    outcomes = []
    log = RequestLog(Path("/dev/full"), most_bytes=10**9, on_row=outcomes.append)
    with running(Sure(), watchers=[log]) as server:
        assert ask(server).choices
    assert outcomes == ["failed"]


def test_a_log_in_a_place_that_is_none_is_found_before_anything_is_served(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RequestLog(tmp_path / "file" / "log.jsonl")


async def until(is_so):
    for _ in range(2000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{threading.active_count()} threads, and it never became so")
