"""An endpoint as a chat model: one pooled client that retries with care."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from potstill.config import Api, LogprobsMode, PriceConfig
from potstill.errors import ConfigError, TeacherRefused
from potstill.models.batch_api import BatchApi, open_batch_api
from potstill.models.chat_format import Answer, NotAnAnswer, declined, read_json
from potstill.models.client import Client, Request
from potstill.models.failures import Failure, gave_up
from potstill.models.fingerprint import request_fingerprint
from potstill.models.scoring import TextScorer
from potstill.models.secret import Key
from potstill.models.streaming import Lines
from potstill.models.sweeping import not_swept
from potstill.models.transport import Reply
from potstill.models.turns import Turns
from potstill.models.wire import OpenAIWire, open_wire
from potstill.types import Message, Record, Response, Sampling

_LONGEST_ERROR = 4096
_LONG_BODY_BYTES = 2**16
_VERY_LONG_BODY_BYTES = 2**21


class EndpointModel:
    """Asks a model behind a URL: a `ChatModel`.

    Args:
        url: Base URL; `/v1` and `/chat/completions` may be there or not.
        api, api_version, logprobs_mode: What it speaks, see `open_wire`.
        model: What the endpoint calls the model; asked from the endpoint where it has only one.
        key: env:NAME, file:PATH, or a SecretStr. It is in no message, log or repr.
        price: Money for a million tokens; makes `Response.cost`.
        settings: Limits of speed and time, as `Client` takes them.

    Raises:
        ConfigError: If the URL is none, or holds a password.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | SecretStr | None = None,
        name: str | None = None,
        price: PriceConfig | None = None,
        api: Api | None = None,
        api_version: str | None = None,
        logprobs_mode: LogprobsMode | None = None,
        **settings: Any,
    ):
        self._wire = open_wire(url, api=api, api_version=api_version, logprobs_mode=logprobs_mode)
        self.host = urlsplit(self._wire.base).netloc
        self.model = model
        self.name = name or model or self.host
        self.price = price
        self._key = Key(key)
        self._client = Client(self._wire, self._key, **settings)
        self._turns = Turns()
        self.max_in_flight = self._client.max_in_flight

    def __repr__(self) -> str:
        return f"EndpointModel({self._wire.base!r}, {self.model!r})"

    @property
    def identity(self) -> str:
        """Where it is and what it is called there: what answers can be re-used for."""
        return f"{self._wire.base} {self.model or ''}"

    @property
    def most_logprobs(self) -> int | None:
        """How many log-probabilities a token it tells at most; None where that is not known."""
        return self._wire.most_logprobs

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {"engine": "endpoint", "host": self.host, "model": self.model}

    @property
    def state(self) -> str:
        """`running`, or until when it is paused and why."""
        return self._client.state

    @property
    def num_retries(self) -> int:
        """Requests that were sent again, over the model's life."""
        return self._client.num_retries

    @property
    def num_in_flight(self) -> int:
        """Requests that are open now; calls of `respond` that wait for their turn are none."""
        return self._client.num_in_flight

    async def prepare(self) -> None:
        """Finds out the model's name where none was given.

        Raises:
            ConfigError: If the endpoint has no model or several.
            TeacherRefused, TeacherError: As `respond`.
        """
        if self.model is not None:
            return
        if self._wire.models_url is None:
            raise ConfigError(f"{self.host} needs the name of a deployment in teacher.model")
        reply, _ = await self._client.exchange(
            Request("GET", self._wire.models_url, "list of models")
        )
        ids: list[str] = []
        with contextlib.suppress(NotAnAnswer, KeyError, TypeError):
            ids = [str(entry["id"]) for entry in read_json(reply.body)["data"]]
        if len(ids) != 1:
            some = f"has {len(ids)}: {', '.join(ids[:5])}" if ids else "names none"
            some += " …" if len(ids) > 5 else ""
            raise ConfigError(
                f"{self.host} {some}; say which one is meant with teacher.model (--model)"
            )
        self.model = ids[0]
        self.name = self.model if self.name == self.host else self.name

    async def dry_call(
        self, sampling: Sampling | None = None, *, top_logprobs: int = 0
    ) -> Response:
        """One tiny request that finds what would stop a run: key, URL, name, log-probabilities.

        Args:
            sampling: As the run will ask: some models refuse a temperature, some penalties.

        Returns:
            The answer, with as many log-probabilities as it tells.

        Raises:
            ConfigError: The key is absent, or the model's name is.
            TeacherRefused: The endpoint refuses key, URL or model, or tells no probabilities.
            TeacherError: It does not answer at all.
        """
        hello = Record(id="dry-call", messages=(Message(role="user", content="Say yes."),))
        changes = {"max_new_tokens": 16, "top_logprobs": top_logprobs}
        sampling = (sampling or Sampling()).model_copy(update=changes)
        response = await self.respond(hello, sampling)
        if response.finish_reason == "error":
            raise TeacherRefused(
                f"{self.host} does not answer a tiny request to {self.model}: {response.error}"
            )
        return response

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`; what is wrong with this prompt alone becomes an error row.

        Raises:
            TeacherRefused: Key, URL, model or quota: the next prompt would fare no better.
            TeacherError: No answer after all retries.
        """
        await self.prepare()
        self.refuse_what_it_cannot(sampling)
        answer, reply = await self._ask(record.messages, sampling)
        response = self.response_to(
            record, sampling, answer, turn=turn, sample=sample, seconds=reply.seconds
        )
        if not reply.num_unread:
            return response
        return response.model_copy(update={"num_unread": reply.num_unread})

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `respond`, in one attempt; both are called as pieces of the answer arrive.

        Raises:
            TeacherRefused, TeacherError: As `respond`; no failure of the endpoint is tried again.
        """
        await self.prepare()
        self.refuse_what_it_cannot(sampling)
        model = self.model or ""
        make_body = functools.partial(self._wire.stream_body, model, record.messages, sampling)
        request = Request("POST", self._wire.chat_url(model), model, make_body)
        return await self._streamed(record, sampling, request, on_token, on_text)

    async def complete(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `stream`; the record's last message is continued as it stands, without a template.

        Raises:
            TeacherRefused: Also where its API has no plain completions.
        """
        await self.prepare()
        wire, model = self._wire, self.model or ""
        if type(wire) is not OpenAIWire:
            raise TeacherRefused(f"{self.host} has no plain completions; ask it for chats")

        def make_body() -> dict[str, Any]:
            body = wire.stream_body(model, record.messages, sampling)
            return {"prompt": body.pop("messages")[-1]["content"], **body}

        request = Request("POST", f"{wire.base}/completions", model, make_body)
        return await self._streamed(record, sampling, request, on_token, on_text)

    async def _streamed(
        self,
        record: Record,
        sampling: Sampling,
        request: Request,
        on_token: Callable[[], None],
        on_text: Callable[[str], None] | None,
    ) -> Response:
        lines = Lines(self._wire.pieces(on_text), on_token)
        reply = await self._client.stream(request, lines.add)
        if reply.status == 200:
            try:
                answer = self._wire.read(lines.tree())
            except NotAnAnswer as error:
                text = f"{self.host} failed: {self._key.hide(str(error))[:_LONGEST_ERROR]}"
                raise gave_up(Failure.UNREADABLE, text) from None
        else:
            text = self._client.message(reply, most=_LONGEST_ERROR)
            answer = declined(reply.status, reply.body, text)
        return self.response_to(record, sampling, answer, seconds=reply.seconds)

    def refuse_what_it_cannot(self, sampling: Sampling) -> None:
        """Raises TeacherRefused where its API never answers what is asked."""
        reason = self._wire.cannot(sampling)
        if reason:
            raise TeacherRefused(f"{self.host} {reason}")

    def body_of(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The JSON that it is asked with, in the manner learned so far."""
        return self._wire.body(self.model or "", messages, sampling)

    def answer_in(self, tree: Any, sampling: Sampling) -> Answer:
        """The answer in the JSON of a reply; raises NotAnAnswer where there is none."""
        return self._wire.read(tree, top_logprobs=sampling.top_logprobs)

    def response_to(
        self,
        record: Record,
        sampling: Sampling,
        answer: Answer,
        *,
        turn: int = 0,
        sample: int = 0,
        seconds: float = 0.0,
        price_share: float = 1.0,
    ) -> Response:
        """An answer as the response to a record.

        Args:
            seconds: How long it took.
            price_share: What its tokens cost, as a share of the price.

        Raises:
            TeacherRefused: If log-probabilities were asked for, and it tells none.
        """
        if sampling.top_logprobs and answer.text and not answer.logprobs and not answer.error:
            raise TeacherRefused(
                f"{self.host} tells no log-probabilities of {self.model}, and "
                f"{sampling.top_logprobs} are asked for (generation.logprobs, or a loss on "
                f"probabilities); set generation.logprobs: 0 and loss.kind: sft, or use an "
                f"endpoint that tells them"
            )
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            text=self._key.hide(answer.text),
            reasoning=self._key.hide(answer.reasoning),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=answer.num_prompt_tokens,
            num_new_tokens=answer.num_new_tokens,
            seconds=seconds,
            cost=self._cost(answer, price_share),
            model=self.model or self.name,
            fingerprint=request_fingerprint(self.identity, record.messages, sampling),
            error=self._key.hide(answer.error),
            logprobs=answer.logprobs,
        )

    def open_batches(self) -> BatchApi:
        """The provider's interface for batches; raises ConfigError where there is none."""
        return open_batch_api(self._wire, self._client)

    def open_scorer(self) -> TextScorer | None:
        """Scores given text; None where its API has no way to. `prepare` comes first."""
        wire = self._wire
        if not isinstance(wire, OpenAIWire) or self.model is None:
            return None
        if wire.most_logprobs is not None:
            return None  # OpenAI's and Azure's: they tell nothing of what they are given
        return TextScorer(wire, self.model, self._client, self.price)

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        await self._client.close()

    async def _ask(self, messages: Sequence[Message], sampling: Sampling) -> tuple[Answer, Reply]:
        """The answer, or the error row that a refusal of this prompt alone makes."""
        url = self._wire.chat_url(self.model or "")
        # Four bytes a token: what providers reckon with before they count.
        num_bytes = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
        request = Request(
            "POST",
            url,
            self.model or "",
            functools.partial(self._wire.body, self.model or "", messages, sampling),
            functools.partial(self._read, top_logprobs=sampling.top_logprobs),
            num_bytes // 4 + sampling.max_new_tokens,
            sampling.max_new_tokens,
        )
        reply, answer = await self._client.exchange(request)
        if answer is None:
            text = self._client.message(reply, most=_LONGEST_ERROR)
            answer = declined(reply.status, reply.body, text)
        return answer, reply

    async def _read(self, data: bytes, top_logprobs: int) -> Answer:
        """The answer in a body; whoever else wants the event loop waits for one long body at most.

        A thread would not help: it takes the interpreter's lock whenever the loop lets go of it,
        which is at every socket, and keeps it for milliseconds each time.
        """

        def read() -> Answer:
            with not_swept():
                return self._wire.read(read_json(data), top_logprobs=top_logprobs)

        if len(data) <= _LONG_BODY_BYTES:
            return self._wire.read(read_json(data), top_logprobs=top_logprobs)
        if len(data) > _VERY_LONG_BODY_BYTES:  # rare, and a tenth of a second of work
            return await asyncio.to_thread(read)
        async with self._turns.next():
            return read()

    def _cost(self, answer: Answer, price_share: float) -> float | None:
        if self.price is None or not answer.has_usage:
            return None
        paid = answer.num_prompt_tokens * self.price.input
        return (paid + answer.num_new_tokens * self.price.output) * price_share / 1e6
