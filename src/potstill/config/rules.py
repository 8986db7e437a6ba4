"""Rules on the fields of a row: which rows are taken, and which teacher answers them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from potstill.config.section import Section

Value = str | int | float | bool


class FieldTest(Section):
    field: str | None = None
    """Dotted name of the field as the file has it, such as `metadata.rating` or
    `choices.0.finish_reason`."""

    equals: Value | None = None
    """The field has this value; `4` and `"4"` are the same."""

    one_of: tuple[Value, ...] | None = None
    """The field has one of these values."""

    contains: str | None = None
    """The field is a text with this in it, or a list that has it."""

    at_least: float | None = None
    """The field is a number, or a text that is one, not below this."""

    at_most: float | None = None
    """The field is a number, or a text that is one, not above this."""

    exists: bool | None = None
    """Whether the row has the field at all."""

    @property
    def tests(self) -> list[str]:
        """Which tests were given."""
        names = ("equals", "one_of", "contains", "at_least", "at_most", "exists")
        return [name for name in names if getattr(self, name) is not None]

    def _problem(self) -> str:
        if self.tests and self.field is None:
            return f"{self.tests[0]} needs a field, such as field: metadata.rating"
        if self.field is not None and not self.tests:
            return (
                f"field: {self.field} needs a test: equals, one_of, contains, at_least, at_most "
                f"or exists"
            )
        return ""


class Where(FieldTest):
    all: tuple[Where, ...] | None = None
    """Rules that must all hold."""

    any: tuple[Where, ...] | None = None
    """Rules of which one must hold."""

    # The inner Annotated keeps the walk over all keys of the config from going round for ever.
    not_: Annotated[Where, Field()] | None = Field(None, alias="not")
    """A rule that must not hold."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Where:
        given = {"field": self.field, "all": self.all, "any": self.any, "not": self.not_}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(
                f"{' and '.join(names)} in one rule; write {{all: [{{...}}, {{...}}]}} "
                f"where several must hold"
            )
        if problem := self._problem():
            raise ValueError(problem)
        if not names:
            raise ValueError("a rule needs field, all, any or not")
        return self
