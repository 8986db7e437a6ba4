"""Config sections that name a model: the teacher and the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


def _as_source(value: Any) -> Any:
    """A bare string is the short form of {source: string}."""
    return {"source": value} if isinstance(value, str) else value


Api = Literal["openai", "azure", "anthropic"]
"""What an endpoint speaks: OpenAI's chat completions, Azure's form of it, Anthropic's messages."""


LogprobsMode = Literal["raw", "processed"]
"""Whether log-probabilities are told before temperature and penalties, or after."""


class PriceConfig(Section):
    input: float = Field(0.0, ge=0)
    """Price of a million prompt tokens."""

    output: float = Field(0.0, ge=0)
    """Price of a million answer tokens."""


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
    `processed`, after. Kept beside them; a server does not say it itself."""

    model: str | None = None
    """Name of the model at the endpoint."""

    key: str | None = None
    """Where the endpoint's key is: `env:NAME` or `file:PATH`. Never the key itself."""

    price: PriceConfig | None = None
    """What a million tokens cost; needed for `generation.max_cost`."""

    timeout_seconds: float = Field(120.0, gt=0)
    """How long one request may take before it is tried again."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Most requests that an endpoint is sent in a minute; without it, what its headers say."""

    tokens_per_minute: int | None = Field(None, ge=1)
    """Most tokens, prompts and answers, that an endpoint is asked for in a minute; without it,
    what its headers say."""

    @model_validator(mode="after")
    def _names_one_place(self) -> TeacherConfig:
        if (self.source is None) == (self.url is None):
            raise ValueError("give either source (name, folder, file, URL) or url, not both")
        if self.key is not None and not self.key.startswith(("env:", "file:")):
            raise ValueError(
                "key must say where the key is, env:NAME or file:PATH; the key itself "
                "does not belong in a file"
            )
        return self

    @property
    def place(self) -> str:
        """The source or the URL, whichever was given."""
        return self.url or self.source or ""


class PruneConfig(Section):
    from_: str = Field(alias="from")
    """Short name, folder or file of the model that the student is cut out of."""

    layers: int | tuple[int, ...]
    """How many layers to keep, or which (counted from 0)."""

    by: Literal["influence", "even"] = "influence"
    """How layers are chosen when a number is given: by what each adds to the hidden state
    on the training prompts, or evenly spaced."""


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
