"""Config sections on records that come from production: which are taken, and what is hidden."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from potstill.config.rules import FieldTest
from potstill.config.section import Section

if TYPE_CHECKING:
    from potstill.config.generation import GenerationConfig
    from potstill.config.sections import DataConfig

PersonalKind = Literal[
    "email",
    "url",
    "iban",
    "card",
    "us_ssn",
    "de_tax_id",
    "in_aadhaar",
    "uk_nino",
    "ip",
    "birth_date",
    "address",
    "phone",
]
PERSONAL_KINDS: tuple[str, ...] = typing.get_args(PersonalKind)
"""What digits could be, the surest first: almost any may be a phone number."""


class FeedbackConfig(FieldTest):
    @model_validator(mode="after")
    def _tests_a_field(self) -> FeedbackConfig:
        problem = self._problem() or ("" if self.field else "feedback needs a field and a test")
        if problem:
            raise ValueError(problem)
        return self


def _as_mode(value: Any) -> Any:
    return "off" if value is False else value  # `off` without quotes is false in YAML


def _as_privacy(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str | bool) else value


class PrivacyConfig(Section):
    mode: Annotated[
        Literal["auto", "off", "pseudonymise", "redact"],
        BeforeValidator(
            _as_mode, json_schema_input_type=Literal["auto", "off", "pseudonymise", "redact", False]
        ),
    ] = "auto"
    """What becomes of personal data before a record is sent to an endpoint: made-up values in
    its place (`pseudonymise`), marks such as `[EMAIL_1]` (`redact`), or nothing (`off`).
    `auto` is `pseudonymise` for records from production logs that an endpoint is asked, else
    `off`; the other modes hold for local teachers too."""

    learn: Literal["restored", "pseudonyms"] = "restored"
    """What the student learns where pseudonyms were sent: the real values, put back into the
    teacher's answer, or the pseudonyms. With `redact` it always learns the marks."""

    kinds: tuple[PersonalKind, ...] = typing.cast(Any, PERSONAL_KINDS)
    """Which kinds are looked for; all by default. Names are found by `names` or `finder`."""

    names: Path | tuple[str, ...] = ()
    """Names to hide: a list, or a text file with one a line."""

    regions: tuple[str, ...] = ("US", "GB", "DE", "IN")
    """Countries whose phone numbers are found without a country code, as two-letter codes."""

    finder: str | None = None
    """A function that finds more, `module:attribute`: text to (start, end, kind) triples."""

    @property
    def in_data(self) -> bool:
        """Whether the student learns without the real values, so that they go at the loading."""
        return self.mode == "redact" or self.learn == "pseudonyms"

    @model_validator(mode="after")
    def _regions_are_codes(self) -> PrivacyConfig:
        for region in self.regions:
            if not (len(region) == 2 and region.isascii() and region.isupper()):
                raise ValueError(f"regions are two-letter country codes such as DE, got {region!r}")
        return self


Privacy = Annotated[
    PrivacyConfig,
    BeforeValidator(
        _as_privacy,
        json_schema_input_type=Literal["auto", "off", "pseudonymise", "redact", False]
        | PrivacyConfig,
    ),
]


def contradictions(data: DataConfig, generation: GenerationConfig) -> list[str]:
    """What cannot be meant together: what a teacher is to do, and that none is asked."""
    problems = []
    if data.logged_answers == "reuse":
        given = {"prompting": "plain", "num_responses": 1, "logprobs": 0}
        problems += [
            f"generation.{name} is what a teacher is asked for, and with data.logged_answers: "
            f"reuse none is asked; leave it out"
            for name, only in given.items()
            if getattr(generation, name) != only
        ]
    privacy = data.privacy
    if privacy.mode == "pseudonymise" and privacy.learn == "restored" and generation.logprobs:
        problems.append(
            "generation.logprobs are of the text that the teacher wrote, and data.privacy puts "
            "other values into it; use data.privacy: {learn: pseudonyms}, or logprobs: 0"
        )
    return problems
