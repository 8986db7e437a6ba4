"""Nothing personal leaves, answers come back whole, and requests are told apart by what is sent."""

import asyncio
import json

import pytest
from fake_endpoint import FakeEndpoint, completion, serving

from potstill.config import GenerationConfig, PrivacyConfig
from potstill.data.privacy import Privacy
from potstill.errors import ConfigError, TeacherError
from potstill.models.endpoint import EndpointModel
from potstill.models.fingerprint import sent_by
from potstill.models.logged import LoggedAnswers
from potstill.models.private import PrivateModel, guarded
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Logprobs, Message, Record, Response, Sampling

NAME, MAIL = "Ottilie Canary", "ottilie.canary@firma.example"
GREEDY = Sampling()


def privacy(mode="pseudonymise", **settings):
    return Privacy(PrivacyConfig(mode=mode, names=(NAME,), **settings), leaves=True)


def record(text, id="r", **metadata):
    return Record(
        id=id, messages=(Message(role="user", content=text),), reference=MAIL, metadata=metadata
    )


class Echo:
    """Says what it was asked; remembers it."""

    name, identity, max_in_flight, price = "echo", "echo 1", 3, None

    def __init__(self):
        self.asked = []

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.asked.append(record)
        text = f"You said: {record.messages[-1].content}"
        return Response(
            record_id=record.id, turn=turn, sample=sample, text=text, reasoning=text,
            finish_reason="stop",
        )  # fmt: skip

    async def close(self):
        self.closed = True


def ask(model, *records, sampling=GREEDY):
    async def all_of_them():
        return [await model.respond(r, sampling) for r in records]

    return asyncio.run(all_of_them())


def test_the_model_sees_pseudonyms_and_the_answer_has_the_real_values():
    echo = Echo()
    (response,) = ask(PrivateModel(echo, privacy()), record(f"I am {NAME}, {MAIL}", note=MAIL))
    assert response.text == response.reasoning == f"You said: I am {NAME}, {MAIL}"
    assert NAME not in echo.asked[0].model_dump_json()
    assert MAIL not in echo.asked[0].model_dump_json()


def test_a_canary_leaves_by_no_part_of_a_request():
    async def work():
        answer = lambda body: completion(body["messages"][-1]["content"])  # noqa: E731
        async with serving(FakeEndpoint(answer=answer)) as fake:
            model = PrivateModel(EndpointModel(fake.url, "fake"), privacy())
            talk = Record(
                id=MAIL,
                messages=(
                    Message(role="system", content=f"You write to {NAME}."),
                    Message(role="user", content=f"My mail is {MAIL.upper()}"),
                    Message(role="assistant", content=f"Thank you, {NAME.upper()}"),
                    Message(role="user", content=f"Write to <{MAIL}> again"),
                ),
                metadata={"log": {"model": "m"}, "customer": NAME},
            )
            response = await model.respond(talk, Sampling())
            await model.close()
            assert [m["role"] for m in fake.bodies[0]["messages"]] == [
                "system", "user", "assistant", "user"]  # fmt: skip
            return response, json.dumps([fake.bodies, fake.headers])

    response, sent = asyncio.run(work())
    assert response.text == f"Write to <{MAIL}> again"
    assert "ottilie" not in sent.casefold()
    assert "canary" not in sent.casefold()


def test_what_is_the_models_own_is_passed_on_and_no_other_way_of_asking():
    echo = Echo()
    model = PrivateModel(echo, privacy())
    assert (model.name, model.identity, model.max_in_flight) == ("echo", "echo 1", 3)
    assert model.price is None
    assert not hasattr(model, "asked")
    asyncio.run(model.close())
    assert echo.closed


def test_the_fingerprint_follows_what_is_sent_and_what_is_put_back():
    model = PrivateModel(Echo(), privacy())
    plain, one, other = record("hello"), record("a@x.org"), record("b@x.org")
    assert sent_by(model)(plain) == plain.messages == sent_by(Echo())(plain)
    assert sent_by(model)(one)[0] == sent_by(model)(other)[0]
    assert sent_by(model)(one) != sent_by(model)(other)
    assert MAIL not in str(sent_by(model)(record(MAIL)))


def test_log_probabilities_of_another_text_are_refused():
    model = PrivateModel(Echo(), privacy())
    assert ask(model, record("hello"), sampling=Sampling(top_logprobs=5))
    with pytest.raises(ConfigError, match=r"generation\.logprobs .* data\.privacy"):
        ask(model, record(MAIL), sampling=Sampling(top_logprobs=5))


def test_kept_probabilities_of_another_text_are_not_passed_on():
    class Keeping(Echo):
        async def respond(self, record, sampling, *, turn=0, sample=0):
            response = await super().respond(record, sampling, turn=turn, sample=sample)
            logprobs = Logprobs(k=1, sampled=b"", ids=b"", values=b"", tail=b"")
            return response.model_copy(update={"logprobs": logprobs})

    plain, hidden = ask(PrivateModel(Keeping(), privacy()), record("hello"), record(MAIL))
    assert plain.logprobs is not None and hidden.logprobs is None


def test_only_a_model_that_is_to_see_less_is_screened():
    echo = Echo()
    assert guarded(echo, privacy("off")) is echo
    assert guarded(echo, Privacy(PrivacyConfig(), leaves=False)) is echo
    assert guarded(echo, privacy(learn="pseudonyms")) is echo
    assert guarded(echo, privacy("redact")) is echo
    assert isinstance(guarded(echo, privacy("auto")), PrivateModel)


def test_auto_leaves_records_alone_that_are_from_no_log():
    echo = Echo()
    ask(guarded(echo, privacy("auto")), record(MAIL), record(MAIL, log={"model": "m"}))
    assert [r.messages[0].content for r in echo.asked] == [MAIL, "person1@example.com"]


def test_logged_answers_are_given_under_the_name_of_their_model():
    answers = LoggedAnswers()
    (response,) = ask(answers, record("Who?", log={"model": "gpt-4o"}))
    assert (response.text, response.model, response.finish_reason) == (MAIL, "gpt-4o", "stop")
    with pytest.raises(TeacherError, match="no answer to this turn was logged"):
        ask(answers, record("Who?").model_copy(update={"reference": None}))
    edited = record("Who?").model_copy(update={"reference": "Me"})
    assert sent_by(answers)(edited) != sent_by(answers)(record("Who?"))


def answer_in_ledger(model, record, folder):
    """The answer that a run of `generate` with this one record leaves."""
    work = generate(model, [record], folder, task=get_task("qa"), config=GenerationConfig(pilot=0))
    asyncio.run(work)
    with Ledger(folder) as ledger:
        ((_, (response,)),) = ledger.with_records("train", [record])
    return response.text


def test_an_answer_kept_in_the_ledger_is_the_restored_one_and_follows_an_edit(tmp_path):
    echo = Echo()
    model = PrivateModel(echo, privacy())
    first, edited = record("I am a@x.org"), record("I am b@x.org")
    assert answer_in_ledger(model, first, tmp_path) == "You said: I am a@x.org"
    assert answer_in_ledger(model, first, tmp_path) == "You said: I am a@x.org"
    assert len(echo.asked) == 1
    assert answer_in_ledger(model, edited, tmp_path) == "You said: I am b@x.org"


def test_an_edited_logged_answer_is_not_the_one_that_was_kept(tmp_path):
    first = record("Who?")
    edited = first.model_copy(update={"reference": "Me"})
    assert answer_in_ledger(LoggedAnswers(), first, tmp_path) == MAIL
    assert answer_in_ledger(LoggedAnswers(), edited, tmp_path) == "Me"


def test_the_plain_functions_hide_logs_from_endpoints_too(tmp_path):
    from potstill import generate_teacher_responses
    from potstill.config import TeacherConfig

    row = {"model": "m", "messages": [{"role": "user", "content": f"I am {MAIL}"}],
           "choices": [{"message": {"content": "Hi"}}]}  # fmt: skip

    async def work():
        answer = lambda body: completion(f"Yes: {body['messages'][-1]['content']}")  # noqa: E731
        async with serving(FakeEndpoint(answer=answer)) as fake:
            teacher = TeacherConfig(url=fake.url, model="fake")
            ask = [generate_teacher_responses, teacher, [row]]
            kept = await asyncio.to_thread(*ask)
            redacted = await asyncio.to_thread(*ask, privacy="redact")
            return kept, redacted, str(fake.bodies)

    kept, redacted, sent = asyncio.run(work())
    assert kept[0].reference == f"Yes: I am {MAIL}"
    assert redacted[0].reference == "Yes: I am [EMAIL_1]"
    assert "canary" not in sent
    with pytest.raises(ConfigError, match=r"privacy\.mode: .*'pseudonymise'"):
        generate_teacher_responses(Echo(), [row], privacy="pseudonymize")


class Streaming(Echo):
    """An echo that streams."""

    async def stream(self, record, sampling, on_token):
        on_token()
        return await self.respond(record, sampling)


def test_a_stream_goes_through_the_screen_as_well():
    model, told = Streaming(), []
    private = PrivateModel(model, privacy())

    async def main():
        return await private.stream(record(f"I am {NAME}."), GREEDY, lambda: told.append(1))

    response = asyncio.run(main())
    assert response.text == f"You said: I am {NAME}."
    assert NAME not in model.asked[0].messages[-1].content and told == [1]


def test_a_screen_streams_no_more_than_the_model_behind_it():
    assert not hasattr(PrivateModel(Echo(), privacy()), "stream")
