"""What comes with a provider's batch is kept like any answer, and no batch is paid for twice."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from fake_anthropic import error, message
from fake_batches import FakeAnthropicBatches, FakeOpenAIBatches
from fake_endpoint import completion, serving
from pydantic import SecretStr
from teach.fakes import prompts

from potstill.config import GenerationConfig, PriceConfig, PrivacyConfig
from potstill.data.privacy import Privacy
from potstill.errors import TeacherError
from potstill.models.batches import BatchModel
from potstill.models.endpoint import EndpointModel
from potstill.models.private import guarded
from potstill.models.transport import Transport
from potstill.rundir import LedgerDir
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Message, Record

HOME = "http://teacher.example"
QA = get_task("qa")
PRICE = PriceConfig(input=10, output=100)
EACH = (7 * 10 + 3 * 100) / 1e6
INVALID = error("invalid_request_error", "it is not allowed")
NAME, MAIL = "Ottilie Canary", "ottilie.canary@firma.example"


def echo(make):
    return lambda body: make(f"to {body['messages'][-1]['content']}")


OPENAI = (FakeOpenAIBatches, "openai", completion)
ANTHROPIC = (FakeAnthropicBatches, "anthropic", message)


@pytest.fixture(params=[OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def provider(request):
    kind, api, make = request.param

    def start(**settings):
        fake = kind(answer=echo(make)).start(**settings)
        fake.api = api
        return fake

    return start


class ToLoopback(Transport):
    """Reaches a server on loopback under one address, whatever its port is in this run."""

    def __init__(self, fake):
        super().__init__(timeout_seconds=10)
        parts = urlsplit(fake.url)
        self.there = f"{parts.scheme}://{parts.netloc}"

    async def send(self, method, url, *rest, **more):
        return await super().send(method, url.replace(HOME, self.there), *rest, **more)


class Stop:
    """Ends the run from the outside, as Ctrl-C does."""

    def __init__(self):
        self.work = None

    def now(self, *_):
        self.work.cancel()
        return asyncio.sleep(0.05)


def ask(fake, records, out, *, task=QA, part="train", online=False, privacy=None, stop=None,
        sleep=None, told=None, limits=None, **config):  # fmt: skip
    settings = GenerationConfig(**{"pilot": 0, **config})
    sleeps = []

    async def slept(seconds):
        sleeps.append(seconds)

    async def main():
        async with serving(fake):
            model = EndpointModel(
                f"{HOME}/v1", "fake", api=fake.api, key=SecretStr(fake.key), price=PRICE,
                sleep=slept, jitter=lambda: 0.0, transport=ToLoopback(fake),
            )  # fmt: skip
            if not online:
                clock = {"wall_clock": lambda: 1_800_000_000.0, "sleep": sleep or slept}
                model = BatchModel(model, **clock, **(limits or {}))
            model = guarded(model, privacy) if privacy else model
            work = asyncio.ensure_future(
                generate(
                    model, records, out, task=task, config=settings, part=part,
                    on_progress=None if told is None else lambda *facts: told.append(facts),
                )
            )  # fmt: skip
            if stop:
                stop.work = work
            try:
                return await work
            finally:
                await model.close()

    counts = asyncio.run(main())
    return counts, sleeps


def answers(out, part="train"):
    with Ledger(out) as ledger:
        return {(r.record_id, r.turn): r for r in ledger.rows(part)}


def sizes(fake):
    return [len(made.lines) for made in fake.made]


def test_a_batch_answers_at_half_the_price(provider, tmp_path):
    fake, told = provider(polls=4), []
    counts, sleeps = ask(fake, prompts(9), tmp_path / "a", told=told)
    assert (counts.requested, counts.answered, counts.failed, counts.reused) == (9, 9, 0, 0)
    assert counts.cost == pytest.approx(9 * EACH / 2)
    assert (counts.num_prompt_tokens, counts.num_new_tokens) == (63, 27)
    assert sizes(fake) == [9]
    assert len(fake.bodies) == 1, "one tiny call shows which fields the model takes"
    assert answers(tmp_path / "a")["r3", 0].text == "to question 3"
    assert sleeps == [5.0, 7.5, 11.25], "it looks less and less often"
    texts = [text.partition(",")[0] for _, _, text in told]
    assert "waiting for a batch: 0 of 9 requests done" in texts


def test_the_pilot_is_asked_at_once(provider, tmp_path):
    fake = provider()
    counts, _ = ask(fake, prompts(9), tmp_path / "a", pilot=2)
    assert (len(fake.bodies), sizes(fake)) == (2, [7])
    assert counts.cost == pytest.approx(2 * EACH + 7 * EACH / 2)
    assert (counts.answered, counts.reused) == (9, 0)


def test_batch_and_online_find_each_others_answers(provider, tmp_path):
    fake = provider()
    ask(fake, prompts(5), tmp_path / "a")
    counts, _ = ask(fake, prompts(8), tmp_path / "a", online=True)
    assert (counts.reused, len(fake.bodies), sizes(fake)) == (5, 1 + 3, [5])
    counts, _ = ask(fake, prompts(10), tmp_path / "a")
    assert (counts.reused, counts.answered, sizes(fake)) == (8, 10, [5, 2])
    counts, _ = ask(fake, prompts(10), tmp_path / "a")
    assert (counts.reused, sizes(fake), fake.lists) == (10, [5, 2], 0)


@pytest.mark.parametrize("ahead", [0, -3_600, 8_000, 40_000])
def test_a_batch_that_was_made_and_not_remembered_is_adopted(provider, tmp_path, ahead):
    """Also where the provider's clock is hours ahead of ours, or behind it."""
    stop = Stop()
    fake = provider(on_create=stop.now, clock=lambda: 1_800_000_000.0 + ahead)
    with pytest.raises(asyncio.CancelledError):
        ask(fake, prompts(6), tmp_path / "a", stop=stop)
    fake.on_create = lambda made: None
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, sizes(fake)) == (6, [6])


def test_a_batch_whose_making_ended_in_an_error_is_not_made_again(provider, tmp_path):
    def fail(made):
        raise web.HTTPServiceUnavailable

    fake = provider(on_create=fail)
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, sizes(fake)) == (6, [6])


def test_an_intent_of_which_nothing_came_is_asked_again(provider, tmp_path):
    fake = provider()

    def lose(made):
        fake.made.remove(made)
        raise web.HTTPServiceUnavailable

    fake.on_create = lose
    with pytest.raises(TeacherError, match="503"):
        ask(fake, prompts(6), tmp_path / "a")
    fake.on_create = lambda made: None
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, sizes(fake)) == (6, [6])


def test_somebody_elses_batch_of_the_same_size_is_not_taken_for_the_lost_one(tmp_path):
    stop = Stop()
    fake = FakeAnthropicBatches(answer=echo(message)).start()
    fake.api = "anthropic"
    foreign = [(f"other-{n}", {"messages": [{"role": "user", "content": "x"}]}) for n in range(6)]

    def crash(made):
        fake.make(foreign)
        fake.make(foreign)
        return stop.now()

    fake.on_create = crash
    with pytest.raises(asyncio.CancelledError):
        ask(fake, prompts(6), tmp_path / "a", stop=stop)
    fake.on_create = lambda made: None
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, sizes(fake)) == (6, [6, 6, 6])
    assert answers(tmp_path / "a")["r5", 0].text == "to question 5"


def test_stopping_leaves_the_batch_and_the_same_command_picks_it_up(provider, tmp_path):
    fake = provider(polls=3)

    async def interrupted(seconds):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask(fake, prompts(6), tmp_path / "a", sleep=interrupted)
    assert not fake.made[0].is_ended
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, sizes(fake)) == (6, [6])


def test_what_a_batch_ended_without_is_asked_again_alone(provider, tmp_path):
    def fate(number, body):
        fates = {"question 2": "expired", "question 4": "lost"}
        return "done" if number else fates.get(body["messages"][-1]["content"], "done")

    fake = provider(fate=fate)
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, counts.reused, sizes(fake)) == (6, 0, [6, 2])
    asked = [body["messages"][-1]["content"] for _, body in fake.made[1].lines]
    assert sorted(asked) == ["question 2", "question 4"]
    assert counts.cost == pytest.approx(6 * EACH / 2)


def test_a_batch_without_any_result_is_not_made_for_ever(provider, tmp_path):
    def fate(number, body):
        return "expired" if body["messages"][-1]["content"] == "question 2" else "done"

    fake = provider(fate=fate)
    counts, _ = ask(fake, prompts(6), tmp_path / "a", min_success_ratio=0.5)
    assert (counts.answered, counts.failed, sizes(fake)) == (5, 1, [6, 1])
    error = answers(tmp_path / "a")["r2", 0].error
    assert (
        error.startswith("not_in_batch: a batch ended without any result (") and "expired" in error
    )


def test_a_refused_row_is_an_outcome_and_the_next_run_asks_it_again(provider, tmp_path):
    def fate(number, body):
        is_bad = len(fake.made) < 2 and body["messages"][-1]["content"] == "question 2"
        return (400, INVALID) if is_bad else "done"

    fake = provider(fate=fate)
    with pytest.raises(TeacherError, match=r"1 of 6 answers did not come.*it is not allowed"):
        ask(fake, prompts(6), tmp_path / "a")
    assert sizes(fake) == [6]
    counts, _ = ask(fake, prompts(6), tmp_path / "a")
    assert (counts.answered, counts.reused, sizes(fake)) == (6, 5, [6, 1])


def test_a_refused_row_is_not_asked_again_by_the_same_run(provider, tmp_path):
    def fate(number, body):
        content = body["messages"][-1]["content"]
        if content == "question 2":
            return (400, INVALID)
        return "expired" if number == 0 and content == "question 3" else "done"

    fake = provider(fate=fate)
    counts, _ = ask(fake, prompts(6), tmp_path / "a", min_success_ratio=0.5)
    assert (counts.answered, counts.failed, sizes(fake)) == (5, 1, [6, 1])
    assert answers(tmp_path / "a")["r2", 0].error.startswith("http_400: status 400")


@pytest.mark.parametrize("limits", [{"most_requests": 4}, {"most_bytes": 800}])
def test_what_is_too_much_for_one_batch_becomes_several(provider, tmp_path, limits):
    fake = provider()
    counts, _ = ask(fake, prompts(10), tmp_path / "a", limits=limits)
    assert counts.answered == sum(sizes(fake)) == 10
    assert max(sizes(fake)) <= 5 and len(sizes(fake)) >= 3


def test_a_conversation_takes_a_batch_for_each_turn(provider, tmp_path):
    talk = Record(
        id="talk",
        messages=(
            Message(role="user", content="one"),
            Message(role="assistant", content="gold one"),
            Message(role="user", content="two"),
        ),
        reference="gold two",
    )
    fake = provider()
    counts, _ = ask(fake, [talk, *prompts(3)], tmp_path / "a", task=get_task("conversation"))
    assert (counts.requested, counts.answered, sizes(fake)) == (5, 5, [4, 1])
    said = [turn["content"] for turn in fake.made[1].lines[0][1]["messages"]]
    assert said == ["one", "to one", "two"]
    assert answers(tmp_path / "a")["talk", 1].text == "to two"


def test_money_counts_before_a_batch_is_made(provider, tmp_path):
    fake = provider()
    config = {"max_new_tokens": 10, "max_cost": 0.004}
    counts, _ = ask(fake, prompts(12), tmp_path / "a", **config)
    assert counts.answered == 12
    assert len(sizes(fake)) > 1, "what did not fit waited for what the first batch cost indeed"
    with pytest.raises(TeacherError, match=r"max_cost = 0.0001 is reached"):
        ask(fake, prompts(12), tmp_path / "b", max_cost=0.0001)
    assert sum(sizes(fake)) == 12


def test_each_part_of_the_input_waits_for_its_own_batches(provider, tmp_path):
    fake = provider(polls=3)

    async def interrupted(seconds):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask(fake, prompts(3), tmp_path / "a", part="validation", sleep=interrupted)
    ask(fake, prompts(4, start=3), tmp_path / "a")
    assert (sizes(fake), fake.made[0].polls) == ([3, 4], 1)
    counts, _ = ask(fake, prompts(3), tmp_path / "a", part="validation")
    assert (counts.answered, sizes(fake)) == (3, [3, 4])


def test_neither_key_nor_customer_nor_record_id_gets_where_it_must_not(provider, tmp_path):
    text = f"My name is {NAME}, write to {MAIL}"
    records = [Record(id=f"{MAIL}-{n}", messages=(Message(role="user", content=f"{n}. {text}"),))
               for n in range(3)]  # fmt: skip
    fake = provider(polls=3)
    hides = Privacy(PrivacyConfig(mode="pseudonymise", names=(NAME,)), leaves=True)

    async def interrupted(seconds):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask(fake, records, tmp_path / "a", privacy=hides, sleep=interrupted)
    folder = LedgerDir(tmp_path / "a")
    assert len(folder.batch_files()) == 1
    written = b"".join(path.read_bytes() for path in folder.path.iterdir())
    sent = json.dumps([[id, body] for made in fake.made for id, body in made.lines])
    for text in (NAME, MAIL, "canary", "Canary"):
        assert text not in sent and text.encode() not in written
    assert fake.key.encode() not in written
    counts, _ = ask(fake, records, tmp_path / "a", privacy=hides)
    assert (counts.answered, sizes(fake)) == (3, [3])
    said = answers(tmp_path / "a")[f"{MAIL}-1", 0].text
    assert NAME in said and MAIL in said
    assert not folder.batch_files(), "nothing is left of a batch but its answers"


def test_the_same_prompt_has_another_name_in_another_run(provider, tmp_path):
    fake = provider()
    ask(fake, prompts(1), tmp_path / "a")
    ask(fake, prompts(1), tmp_path / "b")
    (one, _), (two, _) = fake.made[0].lines[0], fake.made[1].lines[0]
    assert one != two
