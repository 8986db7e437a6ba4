"""How an endpoint is spoken to: addresses, headers, bodies and answers of the three APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from potstill.config import Api, LogprobsMode
from potstill.errors import ConfigError
from potstill.models.chat_format import Answer, read_answer, request_body
from potstill.models.quirks import Quirks
from potstill.models.streaming import OpenAIPieces, Pieces
from potstill.models.wire_anthropic import AnthropicWire
from potstill.types import Message, Sampling

_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_ANTHROPIC_HOSTS = ("api.anthropic.com",)
_OPENAI_HOST = "api.openai.com"
_MOST_LOGPROBS = 20
"""What OpenAI's models tell at most (its reference, `top_logprobs`); Azure's too."""

_LAST_PARTS = ("/chat/completions", "/messages")


class Wire(Protocol):
    """The API of one endpoint. Knows no sockets: `EndpointModel` sends what it says."""

    base: str
    """What all addresses begin with; tells one endpoint from another."""

    models_url: str | None
    """Where the names of its models are; None where it has no such list."""

    most_logprobs: int | None
    """Most log-probabilities a token that it tells; None where that is not known."""

    def chat_url(self, model: str) -> str:
        """Where `body` goes."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """Headers that carry the key (none where it is empty) and the API's version."""
        ...

    def cannot(self, sampling: Sampling) -> str:
        """Why this API never answers what is asked; empty where it may."""
        ...

    def body(self, model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The JSON of a request, in the manner learned so far."""
        ...

    def stream_body(
        self, model: str, messages: Sequence[Message], sampling: Sampling
    ) -> dict[str, Any]:
        """As `body`, for an answer that comes piece by piece, with the count of its tokens."""
        ...

    def pieces(self, on_text: Callable[[str], None] | None = None) -> Pieces:
        """What puts the events of one streamed answer together, and tells its text as it comes."""
        ...

    def learns(self, sent: dict[str, Any], text: str) -> bool:
        """Whether a refusal of `sent` is about a field that `body` writes otherwise from now on."""
        ...

    def read(self, tree: Any, *, top_logprobs: int = 0) -> Answer:
        """Reads the JSON of an answer.

        Raises:
            NotAnAnswer: If it is none.
        """
        ...


class OpenAIWire:
    """OpenAI's chat completions, which most servers speak: a `Wire`."""

    def __init__(self, base: str, query: str = "", *, logprobs_mode: LogprobsMode | None = None):
        self.base = base
        self._query = f"?{query}" if query else ""
        self._mode = logprobs_mode
        is_openais = urlsplit(base).hostname == _OPENAI_HOST
        self.most_logprobs: int | None = _MOST_LOGPROBS if is_openais else None
        self._quirks = Quirks(
            "max_tokens", "seed", "temperature", "return_tokens_as_token_ids", "stream_options"
        )

    @property
    def models_url(self) -> str | None:
        return f"{self.base}/models{self._query}"

    def chat_url(self, model: str) -> str:
        return f"{self.base}/chat/completions{self._query}"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def cannot(self, sampling: Sampling) -> str:
        return ""

    def body(self, model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        return self.taken(request_body(model, messages, sampling))

    def stream_body(
        self, model: str, messages: Sequence[Message], sampling: Sampling
    ) -> dict[str, Any]:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return self.taken({**request_body(model, messages, sampling), **streamed})

    def pieces(self, on_text: Callable[[str], None] | None = None) -> Pieces:
        return OpenAIPieces(on_text)

    def taken(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body of any request without the fields that are refused."""
        return self._quirks.apply(body)

    def learns(self, sent: dict[str, Any], text: str) -> bool:
        return self._quirks.learns(sent, text)

    def read(self, tree: Any, *, top_logprobs: int = 0) -> Answer:
        return read_answer(tree, top_logprobs=top_logprobs, mode=self._mode)


class AzureWire(OpenAIWire):
    """Azure OpenAI: the same bodies at other addresses, with the key in a header of its own.

    Args:
        base: Scheme and host, with or without /openai, /openai/v1 or a deployment's path.
        api_version: Asks for addresses by deployment. Without it the base is that of the v1
            API, which has no versions.
    """

    models_url = None  # the list names models, but requests name deployments

    def __init__(
        self,
        base: str,
        query: str = "",
        *,
        api_version: str | None = None,
        logprobs_mode: LogprobsMode | None = None,
    ):
        if api_version:
            rest = [pair for pair in parse_qsl(query) if pair[0] != "api-version"]
            query = urlencode([*rest, ("api-version", api_version)])
        parts = urlsplit(base)
        self._by_deployment = False
        if parts.path in ("", "/openai"):
            # Versions of addresses by deployment are dates; the v1 API knows "preview" alone.
            self._by_deployment = dict(parse_qsl(query)).get("api-version", "")[:1].isdigit()
            base = f"{parts.scheme}://{parts.netloc}/openai"
            base += "" if self._by_deployment else "/v1"
        super().__init__(base, query, logprobs_mode=logprobs_mode)
        self.most_logprobs = _MOST_LOGPROBS

    def chat_url(self, model: str) -> str:
        if not self._by_deployment:
            return super().chat_url(model)
        return f"{self.base}/deployments/{model}/chat/completions{self._query}"

    def headers(self, key: str) -> dict[str, str]:
        return {"api-key": key} if key else {}


def open_wire(
    url: str,
    *,
    api: Api | None = None,
    api_version: str | None = None,
    logprobs_mode: LogprobsMode | None = None,
) -> Wire:
    """The API behind a URL as people write it, with or without the last parts of the path.

    Args:
        api: Where None, the host says it: Anthropic's and Azure's are known, others are OpenAI's.
        logprobs_mode: What the endpoint's log-probabilities are; kept beside them.

    Raises:
        ConfigError: If the URL is none or holds a password, or a version is given to an API
            that has none.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not the URL of an endpoint, such as https://host/v1")
    if parts.username or parts.password:
        raise ConfigError(
            f"the URL of {parts.hostname} holds a user name or a password; leave them out and name "
            f"the key's place with teacher.key (env:NAME)"
        )
    path = parts.path.rstrip("/")
    for last in _LAST_PARTS:
        path = path.removesuffix(last).rstrip("/")
    api = api or _api_of(parts.hostname)
    if api_version and api != "azure":
        raise ConfigError(
            f"teacher.api_version is {api_version!r}, but {parts.hostname} is asked as {api}, "
            f"which has no versions to choose from; leave it out, or set teacher.api: azure"
        )
    if api == "azure":
        base = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        return AzureWire(base, parts.query, api_version=api_version, logprobs_mode=logprobs_mode)
    if api == "anthropic":
        path = path.removesuffix("/v1") + "/v1"  # where the official client takes a URL without
        return AnthropicWire(urlunsplit((parts.scheme, parts.netloc, path, "", "")))
    base = urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))
    return OpenAIWire(base, parts.query, logprobs_mode=logprobs_mode)


def _api_of(host: str) -> Api:
    if host in _ANTHROPIC_HOSTS:
        return "anthropic"
    return "azure" if host.endswith(_AZURE_HOSTS) else "openai"
