"""The section `evaluate.judge`: a model that says which of two answers is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.config.models import TeacherConfig

if TYPE_CHECKING:
    from potstill.config.sections import DistillConfig

_OF_TEACHERS = ("batch", "accept_terms", "when")


class JudgeConfig(TeacherConfig):
    how: tuple[Literal["pairwise", "rubric"], ...] = Field(("pairwise",), min_length=1)
    """What the judge is asked: which of two answers is better, in both orders (`pairwise`), or
    what each answer is worth from 1 to 5 (`rubric`)."""

    against: tuple[str, ...] | None = None
    """Rows of the report that the distilled student is judged against; the teacher and the
    untouched student by default, where they are rows."""

    criteria: str = ""
    """What makes an answer good here, in your own words; the judge reads it."""

    show_reference: bool = False
    """Whether the judge sees the known answer. It then judges better, but its agreement with the
    known answers says nothing about it any more."""

    num_rows: int | None = Field(None, ge=1)
    """Test answers that are judged, chosen as good as at random; all by default."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest reply of the judge, its reasons included."""

    max_cost: float | None = Field(None, gt=0)
    """Most money that judging may cost; needs `price`."""

    @model_validator(mode="after")
    def _is_no_teacher(self) -> JudgeConfig:
        for name in _OF_TEACHERS:
            if getattr(self, name) != TeacherConfig.model_fields[name].default:
                raise ValueError(f"{name} is for teachers; leave it out of a judge")
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost needs price: {input: ..., output: ...}")
        if len(set(self.how)) < len(self.how):
            raise ValueError(f"how names one way twice: {', '.join(self.how)}")
        return self


def judge_problems(config: DistillConfig) -> list[str]:
    """What cannot be meant about whose answers are judged."""
    settings, judge = config.evaluate, config.evaluate.judge
    if judge is None:
        return []
    plain = ("majority", "tfidf_gold", "tfidf_teacher")
    rows = [
        *(["teacher"] if settings.teacher else []),
        *(name for name in settings.baselines if name != "plain"),
        *(plain if "plain" in settings.baselines else ()),
        *config.export,
    ]
    there = f"the rows are: {', '.join(rows) or 'none beside the distilled student'}"
    unknown = [name for name in judge.against or () if name not in rows]
    if unknown:
        return [f"evaluate.judge.against names {', '.join(unknown)}, and {there}"]
    if "pairwise" in judge.how and not {"teacher", "untouched", *(judge.against or ())} & {*rows}:
        return [
            f"evaluate.judge compares the distilled student with the teacher and the untouched "
            f"student, and neither is a row; set evaluate.judge.against ({there})"
        ]
    return []


def _as_source(value: Any) -> Any:
    """A bare string is the short form of {source: string}."""
    return {"source": value} if isinstance(value, str) else value


Judge = Annotated[
    JudgeConfig | None,
    BeforeValidator(_as_source, json_schema_input_type=str | JudgeConfig | None),
]
