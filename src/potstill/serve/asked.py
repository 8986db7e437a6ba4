"""Requests: OpenAI's JSON to records and sampling, or a refusal that names the field.

A field that would change the answer and is not understood is refused, never passed over.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from potstill.rundir import content_hash
from potstill.serve.refusals import Refusal
from potstill.types import Message, Record, Sampling

MOST_LOGPROBS = 20
"""Log-probabilities a token that can be asked for, as OpenAI's reference has it."""

_SEEDS = 2**31


@dataclass(frozen=True)
class Asked:
    """One request, read."""

    records: tuple[Record, ...]
    """What is asked; a chat is one, a plain completion may have several prompts."""

    sampling: Sampling
    model: str | None
    num_each: int = 1
    is_chat: bool = True
    is_streamed: bool = False
    tells_usage: bool = False
    """Whether a stream ends with the count of its tokens."""

    logprobs: int | None = None
    """How many of the most probable tokens are told at each position; None is nothing at all."""

    names_ids: bool = False
    """Whether tokens are told as `token_id:N`."""

    @property
    def parts(self) -> list[tuple[Record, Sampling]]:
        """Every answer that is wanted, in order, each with random numbers of its own."""
        seeds = range(self.sampling.seed, self.sampling.seed + self.num_each)
        return [
            (record, self.sampling.model_copy(update={"seed": seed}))
            for record in self.records
            for seed in seeds
        ]


@dataclass(frozen=True)
class Defaults:
    """What holds where a request does not say it."""

    temperature: float = 0.0
    max_new_tokens: int = 1024


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Part(_Body):
    type: Literal["text"]
    text: str


class _Turn(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: None = None
    refusal: None = None
    tool_calls: None = None

    @property
    def message(self) -> Message:
        said = self.content
        text = said if isinstance(said, str) else "".join(part.text for part in said)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class _StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class _TextFormat(_Body):
    type: Literal["text"]


class _Common(_Body):
    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=16)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    # Understood only where they ask for nothing.
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    # Who asks, and for which books: no part of the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > 4 or not all(given):
            raise Refusal(400, "stop is one text, or up to four, none of them empty", param="stop")
        return tuple(given)


class _ChatBody(_Common):
    messages: list[_Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    return_tokens_as_token_ids: bool | None = None  # vLLM's
    response_format: _TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


class _PlainBody(_Common):
    prompt: str | list[str]
    echo: Literal[False] | None = None
    suffix: None = None
    logprobs: None = None
    best_of: Literal[1] | None = None


def read_chat(body: Any, defaults: Defaults) -> Asked:
    """A request for a chat completion.

    Raises:
        Refusal: If it is none, or asks for what is not there.
    """
    given = _validated(_ChatBody, body)
    assert isinstance(given, _ChatBody)
    messages = tuple(turn.message for turn in given.messages)
    if messages[-1].role != "user":
        raise Refusal(
            400,
            f"messages must end with a user turn, and end with {messages[-1].role}",
            param="messages",
        )
    if given.top_logprobs and not given.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    longest = given.max_completion_tokens or given.max_tokens
    return Asked(
        records=(_record(messages),),
        sampling=_sampling(given, longest, defaults),
        model=given.model,
        num_each=given.n or 1,
        is_streamed=bool(given.stream),
        tells_usage=_tells_usage(given),
        logprobs=(given.top_logprobs or 0) if given.logprobs else None,
        names_ids=bool(given.return_tokens_as_token_ids),
    )


def read_completion(body: Any, defaults: Defaults) -> Asked:
    """A request for plain completions, the text of whose prompts is continued as it stands.

    Raises:
        Refusal: As `read_chat`.
    """
    given = _validated(_PlainBody, body)
    assert isinstance(given, _PlainBody)
    prompts = [given.prompt] if isinstance(given.prompt, str) else given.prompt
    if not prompts or not all(prompts) or len(prompts) > 64:
        raise Refusal(400, "prompt is one text, or up to 64, none of them empty", param="prompt")
    return Asked(
        records=tuple(_record((Message(role="user", content=text),)) for text in prompts),
        sampling=_sampling(given, given.max_tokens, defaults),
        model=given.model,
        num_each=given.n or 1,
        is_chat=False,
        is_streamed=bool(given.stream),
        tells_usage=_tells_usage(given),
    )


def _record(messages: Sequence[Message]) -> Record:
    id_ = content_hash([message.model_dump() for message in messages])
    return Record(id=id_, messages=tuple(messages))


def _sampling(given: _Common, longest: int | None, defaults: Defaults) -> Sampling:
    temperature = defaults.temperature if given.temperature is None else given.temperature
    return Sampling(
        temperature=temperature,
        top_p=given.top_p or 1.0,
        max_new_tokens=longest or defaults.max_new_tokens,
        seed=random.randrange(_SEEDS) if given.seed is None else given.seed % _SEEDS,
        stop=given.stops,
        frequency_penalty=given.frequency_penalty or 0.0,
        presence_penalty=given.presence_penalty or 0.0,
    )


def _tells_usage(given: _Common) -> bool:
    if given.stream_options is not None and not given.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")
    return given.stream_options is not None and given.stream_options.include_usage


def _validated(kind: type[_Common], body: Any) -> _Common:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        where = ".".join(str(part) for part in first["loc"])
        raise Refusal(400, _explained(where, first, kind), param=field) from None


def _explained(where: str, problem: Any, kind: type[_Common]) -> str:
    if not where:
        return "the body must be a JSON object"
    if problem["type"] == "extra_forbidden":
        return f"{where}: this server knows no such field; it knows: {', '.join(kind.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}: this field is required"
    if problem["type"] in ("none_required", "too_long"):
        return f"{where}: not supported here; leave it out"
    return f"{where}: {problem['msg']}"
