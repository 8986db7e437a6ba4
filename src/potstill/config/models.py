"""Config sections that name a model: the teacher and the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.config.rules import Where
from potstill.config.section import Date, Section


def _as_source(value: Any) -> Any:
    """A bare string is the short form of {source: string}."""
    return {"source": value} if isinstance(value, str) else value


Engine = Literal["llama-server", "ollama", "vllm"]
"""Programs that serve weights on this machine and speak OpenAI's chat completions."""


Api = Literal["openai", "azure", "anthropic"]
"""What an endpoint speaks: OpenAI's chat completions, Azure's form of it, Anthropic's messages."""


LogprobsMode = Literal["raw", "processed"]
"""Whether log-probabilities are told before temperature and penalties, or after."""


class PriceConfig(Section):
    input: float = Field(0.0, ge=0)
    """Price of a million prompt tokens."""

    output: float = Field(0.0, ge=0)
    """Price of a million answer tokens."""

    batch: float = Field(0.5, ge=0, le=1)
    """What a token costs in a provider's batch, as a share of its price."""

    as_of: Date | None = None
    """When the price was read: `2026-11` or `2026-11-22`. Reports say it beside the cost."""


_OF_ENDPOINTS = (
    *("key", "api", "api_version", "logprobs_mode", "price"),
    *("timeout_seconds", "requests_per_minute", "tokens_per_minute"),
)
_SETS_ADDRESS = ("--host", "--port", "--uds", "--alias", "-a", "--served-model-name")
_SECRETS = {"key", "token", "password", "secret"}


class TeacherConfig(Section):
    source: str | None = None
    """Short name, Hugging Face folder, `file.gguf`, or URL of an endpoint."""

    url: str | None = None
    """Base URL of an endpoint, such as `https://host/v1`."""

    api: Api | None = None
    """What the endpoint speaks: `openai` (also vLLM, llama.cpp and most others), `azure` or
    `anthropic`. Found from the host where it is Azure's or Anthropic's, else `openai`."""

    api_version: str | None = None
    """Azure only: version for addresses by deployment, such as `2024-10-21`. Without it Azure's
    v1 API is asked, which has none."""

    logprobs_mode: LogprobsMode | None = None
    """What the endpoint's log-probabilities are: `raw`, before temperature and penalties, or
    `processed`, after. Kept beside them; a server does not say it itself. A loss on probabilities
    needs `raw`, or `generation.temperature: 1`."""

    model: str | None = None
    """Name of the model at the endpoint; with `launch`, what the engine is started for."""

    launch: Engine | None = None
    """Starts an engine for `model` (a short name, folder, `file.gguf` or hub id) on this machine
    and ends it once it has answered: `llama-server` or `ollama` for GGUF files, `vllm` for
    folders."""

    launch_seconds: float = Field(900.0, gt=0)
    """How long a launched engine may take until it answers; reading large weights takes long."""

    launch_arguments: tuple[str, ...] = ()
    """Further arguments of the launched engine, such as `[--tensor-parallel-size, "2"]`."""

    key: str | None = None
    """Where the endpoint's key is: `env:NAME` or `file:PATH`. Never the key itself."""

    price: PriceConfig | None = None
    """What a million tokens cost; needed for `generation.max_cost`."""

    batch: bool = False
    """Ask through the provider's batches: answers come within a day, at half the price. OpenAI,
    Anthropic, and endpoints that speak their batch interfaces; the pilot is asked at once."""

    accept_terms: bool = False
    """You have read the teacher's terms, which forbid to train on its outputs, and may all the
    same. Without it such a run is refused, where the catalogue knows the terms."""

    when: Where | None = None
    """Of several teachers, with `generation.teachers: route`: which prompts this one answers, a
    rule on their metadata as in `data.where`. The last teacher may have none and takes the rest."""

    timeout_seconds: float = Field(120.0, gt=0)
    """How long one request may take before it is tried again."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Most requests that an endpoint is sent in a minute; without it, what its headers say."""

    tokens_per_minute: int | None = Field(None, ge=1)
    """Most tokens, prompts and answers, that an endpoint is asked for in a minute; without it,
    what its headers say."""

    @model_validator(mode="after")
    def _names_one_place(self) -> TeacherConfig:
        if self.launch is not None:
            self._refuse_contradictions()
        elif (self.source is None) == (self.url is None):
            raise ValueError("give either source (name, folder, file, URL) or url, not both")
        else:
            for name in ("launch_seconds", "launch_arguments"):
                if getattr(self, name) != TeacherConfig.model_fields[name].default:
                    raise ValueError(f"{name} is for an engine that launch starts; set launch")
        if self.key is not None and not self.key.startswith(("env:", "file:")):
            raise ValueError(
                "key must say where the key is, env:NAME or file:PATH; the key itself "
                "does not belong in a file"
            )
        return self

    def _refuse_contradictions(self) -> None:
        if self.url is not None:
            raise ValueError("launch starts an engine here, and url is one elsewhere; give one")
        if (self.source is None) == (self.model is None):
            raise ValueError("launch needs model, or source, which mean the same to it; give one")
        for name in _OF_ENDPOINTS:
            if getattr(self, name) != TeacherConfig.model_fields[name].default:
                raise ValueError(f"{name} is for endpoints; leave it out with launch")
        for argument in self.launch_arguments:
            option = argument.partition("=")[0].replace("_", "-")
            if option in _SETS_ADDRESS or option.startswith("--ssl"):
                raise ValueError(f"launch chooses address and name itself; leave {option} out")
            if argument.startswith("-") and _SECRETS & set(option.strip("-").split("-")):
                raise ValueError(
                    f"everybody on this machine can read {option} in the list of processes, and "
                    f"a launched engine needs no key; leave it out (HF_TOKEN stays in force)"
                )

    @property
    def place(self) -> str:
        """The source, the URL, or what an engine is launched for, whichever was given."""
        return self.url or self.source or (self.model if self.launch else None) or ""


class PruneConfig(Section):
    from_: str = Field(alias="from")
    """Short name, folder or file of the model that the student is cut out of."""

    layers: int | tuple[int, ...] | None = None
    """How many layers to keep, or which (counted from 0); all by default."""

    by: Literal["influence", "even", "greedy"] = "influence"
    """How layers are chosen when a number is given: by what each adds to the hidden state on the
    training prompts; evenly spaced; or one by one, the next to go being the layer without which
    the loss on accepted rows rises least (`greedy`: slower, and better cuts)."""

    ffn: int | None = Field(None, ge=1)
    """How many channels each feed-forward layer keeps: those that are most active."""

    heads: int | None = Field(None, ge=1)
    """How many query heads each attention layer keeps, evenly shared by its key-value heads."""

    kv_heads: int | None = Field(None, ge=1)
    """How many key-value heads each attention layer keeps; without `heads`, with all their
    query heads. The cache of a student shrinks with them."""

    @model_validator(mode="after")
    def _cuts_something(self) -> PruneConfig:
        if self.layers is None and self.ffn is None and self.heads is None and not self.kv_heads:
            raise ValueError("say what the student keeps: layers, ffn, heads or kv_heads")
        return self


class StudentConfig(Section):
    source: str | None = None
    """Short name, Hugging Face folder or `file.gguf` of a causal language model."""

    prune: PruneConfig | None = None
    """Cut the student out of a larger model instead."""

    @model_validator(mode="after")
    def _is_given_or_cut(self) -> StudentConfig:
        if (self.source is None) == (self.prune is None):
            raise ValueError("give either a source or prune: {from: ..., layers: ...}")
        return self

    @property
    def place(self) -> str:
        """Where the weights come from."""
        return self.source or (self.prune.from_ if self.prune else "")


Teacher = Annotated[
    TeacherConfig, BeforeValidator(_as_source, json_schema_input_type=str | TeacherConfig)
]
Student = Annotated[
    StudentConfig, BeforeValidator(_as_source, json_schema_input_type=str | StudentConfig)
]
