"""The key `teacher`: one model, or several and what cannot be meant by them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, WrapValidator

from potstill.config.asked import OPEN_TASKS
from potstill.config.generation import GenerationConfig
from potstill.config.models import Teacher, TeacherConfig

if TYPE_CHECKING:
    from potstill.config.sections import DistillConfig

_ONE: TypeAdapter[TeacherConfig] = TypeAdapter(Teacher)
_SEVERAL: TypeAdapter[tuple[TeacherConfig, ...]] = TypeAdapter(tuple[Teacher, ...])


def _one_or_several(value: Any, handler: Callable[[Any], Any]) -> Any:
    """A list of one is one. Each form has its own messages, without those of the other."""
    if not isinstance(value, list | tuple):
        return _ONE.validate_python(value)
    found = _SEVERAL.validate_python(value)
    if not found:
        raise ValueError("the list of teachers is empty; name at least one")
    return found if len(found) > 1 else found[0]


Teachers = Annotated[
    TeacherConfig | tuple[TeacherConfig, ...],
    WrapValidator(
        _one_or_several,
        json_schema_input_type=str | TeacherConfig | tuple[str | TeacherConfig, ...],
    ),
]


def teachers_problems(config: DistillConfig) -> list[str]:
    """What cannot be meant together about who answers."""
    teachers, how = config.teachers, config.generation.teachers
    if len(teachers) == 1:
        return _problems_of_one(config)
    problems = {"route": _route, "fallback": _fallback, "vote": _vote}[how](config)
    if how != "route" and any(teacher.when for teacher in teachers):
        problems.append(f"teacher.when is for generation.teachers: route, and not for {how}")
    if any(teacher.batch for teacher in teachers):
        problems.append("teacher.batch is for one teacher alone, not for one of several")
    if config.data.logged_answers == "reuse":
        problems.append(
            "data.logged_answers: reuse learns from the logs alone; name one teacher, which the "
            "student is compared with"
        )
    if config.loss.kind != "sft":
        problems.append(
            f"loss.kind: {config.loss.kind} reads one teacher's probabilities, and several are "
            f"named; use loss.kind: sft, or one teacher"
        )
    if config.loss.needs_teacher:
        problems.append(
            "loss.hidden and loss.attention read one teacher's layers, and several are named; use "
            "neither of the two, or one teacher"
        )
    # Weights on this machine cost nothing; a launched engine cannot have a price at all.
    priced = [n for n, t in enumerate(teachers) if t.price is None and t.launch is None]
    if config.generation.max_cost is not None and priced:
        keys = " and ".join(f"teacher.{number}.price" for number in priced)
        problems.append(
            f"generation.max_cost bounds the bill of all teachers and needs {keys}: "
            f"{{input: ..., output: ...}}, which is {{}} for one that costs nothing"
        )
    return problems


def _problems_of_one(config: DistillConfig) -> list[str]:
    (teacher,), generation = config.teachers, config.generation
    problems = []
    if teacher.when is not None:
        problems.append("teacher.when chooses among several teachers, and only one is named")
    if generation.teachers != "route":
        problems.append(
            f"generation.teachers: {generation.teachers} is for several teachers, and only one is "
            f"named; give a list under teacher"
        )
    if generation.max_cost is not None and teacher.price is None:
        problems.append("generation.max_cost needs teacher.price: {input: ..., output: ...}")
    return problems


def _route(config: DistillConfig) -> list[str]:
    """Every teacher but the last has a rule: nobody behind one without is ever asked."""
    *before, last = config.teachers
    bare = [f"teacher.{n}" for n, teacher in enumerate(before) if teacher.when is None]
    if bare:
        return [
            f"{' and '.join(bare)} would take every prompt that comes to it, and teachers behind "
            f"would never be asked: give it a rule, when: {{field: ..., equals: ...}}, or set "
            f"generation.teachers: fallback or vote"
        ]
    if config.data_generation is not None and last.when is not None:
        return [
            "data_generation makes prompts without the metadata that rules look at; add a last "
            "teacher without a rule (when), which writes and answers them"
        ]
    return []


def _fallback(config: DistillConfig) -> list[str]:
    if config.data_generation is not None and "task" in config.generation.fallback_checks:
        return [
            "generation.fallback_checks: task is for answers, and data_generation asks for prompts "
            "as well; leave one of them out"
        ]
    if config.task == "math" and "task" in config.generation.fallback_checks:
        return [
            "generation.fallback_checks: task is not for task: math, whose check may take long "
            "and runs when all answers are there; leave it out"
        ]
    return []


def _vote(config: DistillConfig) -> list[str]:
    generation, num_teachers = config.generation, len(config.teachers)
    problems = []
    if config.task in OPEN_TASKS:
        problems.append(
            f"generation.teachers: vote is not for task: {config.task}, whose right answers differ "
            f"in their words; use route or fallback"
        )
    if generation.min_agreement > num_teachers:
        problems.append(
            f"generation.min_agreement = {generation.min_agreement} cannot be met by "
            f"{num_teachers} teachers"
        )
    given = {"num_responses": 1, "choose": "all", "num_accepted": None}
    problems += [
        f"generation.{name} does not go with generation.teachers: vote, which takes one answer of "
        f"each teacher to every prompt; leave it out"
        for name, only in given.items()
        if getattr(generation, name) != only
    ]
    return problems


def asked_of_all(generation: GenerationConfig, num_teachers: int) -> GenerationConfig:
    """The section as it is asked: where teachers vote, an answer of each is a sample."""
    if generation.teachers != "vote" or num_teachers == 1:
        return generation
    return generation.model_copy(update={"num_responses": num_teachers})
