"""What can be found out before anything long starts: models, keys, vocabularies, metrics."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.config import (
    DistillConfig,
    GenerationConfig,
    LogprobsMode,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from potstill.data.privacy import Privacy
from potstill.data.render import vocab_fingerprint
from potstill.errors import ConfigError, MissingExtra, TeacherError, TeacherRefused, VocabMismatch
from potstill.examine.gates import parse_gate
from potstill.examine.metrics import get_metric
from potstill.examine.run import read_names
from potstill.models.batches import in_batches
from potstill.models.catalog import ModelRef, find_model
from potstill.models.chat import open_chat_model
from potstill.models.endpoint import EndpointModel
from potstill.models.logprobs import num_told
from potstill.models.several import labels_of
from potstill.models.terms import terms_of
from potstill.pipeline.artefacts import read_target
from potstill.pipeline.context import Context, prepared, wait, weights_key
from potstill.protocols import resolve
from potstill.types import Sampling


def preflight(ctx: Context) -> None:
    """Refuses a run that cannot succeed, before anything is spent.

    Names are resolved, each remote or launched teacher is called once, and for a loss on
    probabilities the two tokenizers are compared, or an endpoint is made to tell some. Of
    teachers that stand in for each other one must answer.

    Raises:
        ConfigError: An unknown model, metric, check or exporter; a loss on probabilities
            with a teacher that gives none that fit; a teacher whose terms forbid it, and were
            not accepted.
        VocabMismatch: Teacher and student have different tokenizers and the loss needs one.
        TeacherRefused: The endpoint refused the key, the URL or the model's name, or does not
            tell the probabilities that the loss needs.
        MissingExtra: A package that training asks for is not installed.
    """
    config = ctx.config
    _refuse_what_is_not_installed(config.train)
    for name in read_names(config.evaluate.metrics):
        get_metric(name)
    _refuse_gates_that_cannot_hold(config)
    for name in config.checks:
        resolve("check", name)
    for export in config.export:
        read_target(export)
    _refuse_forbidden(ctx)
    teacher = teacher_ref(ctx)
    student = find_model(config.student.place, workspace=ctx.workspace)
    if student.kind == "endpoint":
        raise ConfigError(
            f"student: {config.student.place} is an endpoint; a student is weights that can be "
            f"trained: a short name or a folder"
        )
    if config.loss.kind != "sft":
        _refuse_without_probabilities(ctx, teacher, student)
    if config.loss.needs_teacher:
        _refuse_without_layers(ctx, teacher, student)
    privacy_of(ctx)
    if config.evaluate.judge is not None and config.data.test is not None:
        wait(_call_judge(ctx, config.evaluate.judge))
    if config.teachers[0].batch and teacher.kind != "endpoint":
        raise ConfigError(
            f"teacher.batch is for the batch interfaces of OpenAI and Anthropic, and "
            f"{config.teachers[0].place} is a model on this machine; use teacher.batch: false"
        )
    refs = [ref_of(ctx, one) for one in config.teachers]  # all names are known before one is called
    if _asks_the_teacher(ctx):
        pairs = zip(config.teachers, refs, strict=True)
        wait(_dry_calls(ctx, [t for t, r in pairs if r.kind == "endpoint" or _launches(ctx, t)]))


def _refuse_what_is_not_installed(train: TrainConfig) -> None:
    """Training comes last: what it needs would be missed after the teacher was paid."""
    needed = {kind: ("track", f"pip install {kind}") for kind in train.track}
    if train.adapter is not None and train.adapter.kind == "qlora":
        needed["bitsandbytes"] = ("adapter", 'pip install "potstill[qlora]"')
    for package, (key, way_out) in needed.items():
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"train.{key} needs {package}, which is not installed: {way_out}")


def _refuse_gates_that_cannot_hold(config: DistillConfig) -> None:
    """A rule that cannot be read, or on a model that will not be evaluated, is found now."""
    evaluated = {"distilled", *config.evaluate.baselines, *config.export}
    evaluated |= {"teacher"} if config.evaluate.teacher else set()
    if "plain" in evaluated:
        evaluated |= {"majority", "tfidf_gold", "tfidf_teacher"}
    evaluated.discard("plain")
    for rule in config.evaluate.gates:
        role = parse_gate(rule).role
        if role is not None and role not in evaluated:
            raise ConfigError(
                f"evaluate.gates: {rule!r} needs {role!r}, which this run does not evaluate; it "
                f"evaluates: {', '.join(sorted(evaluated))}"
            )


def teacher_ref(ctx: Context) -> ModelRef:
    """The teacher's place, resolved through workspace and catalogue; of several the first one's."""
    return ref_of(ctx, ctx.config.teachers[0])


def ref_of(ctx: Context, teacher: TeacherConfig) -> ModelRef:
    """The place of one teacher."""
    return find_model(teacher.place, workspace=ctx.workspace)


def required_logprobs(ctx: Context) -> int:
    """Log-probabilities of each token that an endpoint must tell for the loss; 0 is none."""
    loss = ctx.config.loss
    is_told = loss.kind != "sft" and teacher_ref(ctx).kind == "endpoint"
    return loss.targets.k if is_told else 0


def asked_generation(ctx: Context) -> GenerationConfig:
    """How the teacher is asked: as the config says, and for what the loss needs besides."""
    generation = ctx.config.generation
    required = required_logprobs(ctx)
    if generation.logprobs >= required:
        return generation
    return generation.model_copy(update={"logprobs": required})


def logprobs_mode(ctx: Context) -> LogprobsMode | None:
    """What the config says that an endpoint's log-probabilities are."""
    return ctx.config.teachers[0].logprobs_mode or teacher_ref(ctx).logprobs_mode


def is_plainly_sampled(generation: GenerationConfig) -> bool:
    """Whether answers are drawn from the model's own probabilities, nothing cut or lowered."""
    penalties = generation.frequency_penalty or generation.presence_penalty
    return generation.temperature == 1 == generation.top_p and not penalties


def place_key(
    ctx: Context, model: TeacherConfig | StudentConfig | tuple[TeacherConfig, ...]
) -> str:
    """Where a model's weights are, for stage hashes; of several teachers the places of all."""
    models = model if isinstance(model, tuple) else (model,)
    return " ".join(find_model(one.place, workspace=ctx.workspace).source for one in models)


def teacher_key(ctx: Context) -> tuple[Any, ...]:
    """What tells the teachers from others, with the rules that choose them, for stage hashes."""
    return tuple(
        [t.model, t.launch, t.launch_arguments, t.when, weights_key(place_key(ctx, t))]
        for t in ctx.config.teachers
    )


def privacy_of(ctx: Context, teacher: TeacherConfig | None = None) -> Privacy:
    """What is hidden from a teacher; by default, what is hidden from any of the config."""
    asked = ctx.config.teachers if teacher is None else (teacher,)
    leaves = any(ref_of(ctx, one).kind == "endpoint" for one in asked)
    return Privacy(ctx.config.data.privacy, leaves=leaves)


def privacy_key(ctx: Context) -> tuple[Any, ...]:
    """What the hidden form of a record depends on, for stage hashes."""
    settings = ctx.config.data.privacy
    names = [settings.names] if isinstance(settings.names, Path) else []
    return (settings, privacy_of(ctx).mode, *names)


def _asks_the_teacher(ctx: Context) -> bool:
    config = ctx.config
    is_compared = config.evaluate.teacher and config.data.test is not None
    return config.data.logged_answers == "regenerate" or is_compared


def _launches(ctx: Context, teacher: TeacherConfig) -> bool:
    """Whether an engine is to be started that this run has not been answered by yet."""
    return teacher.launch is not None and not ctx.run.facts("teach")


def _refuse_forbidden(ctx: Context) -> None:
    if ctx.config.data.logged_answers == "reuse":
        return  # whoever gave those answers, it is not the config's teacher
    teachers = ctx.config.teachers
    found = [terms_of(teacher, workspace=ctx.workspace) for teacher in teachers]
    forbidden = [
        (number, terms.text)
        for number, terms in enumerate(found)
        if terms.train_on_outputs == "no" and not terms.accepted
    ]
    if forbidden:
        keys = ["teacher: {accept_terms: true}"]
        if len(teachers) > 1:
            keys = [f"teacher.{number}.accept_terms=true" for number, _ in forbidden]
        raise ConfigError(
            f"{'; '.join(text for _, text in forbidden)}. Take another teacher; or, if you have "
            f"read them and may all the same, say so with potstill run --accept-terms or "
            f"{' '.join(keys)}"
        )
    for terms in found:
        if terms.text:
            ctx.tell("teach", "note", terms.text)


async def _call_judge(ctx: Context, judge: TeacherConfig) -> None:
    """Calls a remote judge once: a wrong key is better found before training than after it."""
    if ref_of(ctx, judge).kind != "endpoint":
        return
    model = open_chat_model(judge, workspace=ctx.workspace)
    try:
        await prepared(model, ctx.progress("judge"))
        await model.dry_call(Sampling(temperature=0.0))
    finally:
        await model.close()


async def _dry_calls(ctx: Context, teachers: list[TeacherConfig]) -> None:
    """Calls each once; of those that stand in for each other, one that fails is told of."""
    failures: list[TeacherError] = []
    labels = dict(zip(ctx.config.teachers, labels_of(ctx.config.teachers), strict=True))
    for teacher in teachers:
        try:
            await _dry_call(ctx, teacher)
        except TeacherError as error:
            failures.append(error)
            is_alone = len(failures) == len(ctx.config.teachers)
            if ctx.config.generation.teachers != "fallback" or is_alone:
                raise
            text = f"warning: {labels[teacher]} fails, so others take its place: {error}"
            ctx.tell("teach", "note", text)


async def _dry_call(ctx: Context, teacher: TeacherConfig) -> None:
    generation = asked_generation(ctx)
    sampling = Sampling(
        temperature=generation.temperature,
        top_p=generation.top_p,
        stop=generation.stop,
        frequency_penalty=generation.frequency_penalty,
        presence_penalty=generation.presence_penalty,
    )
    is_alone = len(ctx.config.teachers) == 1
    model = open_chat_model(
        teacher,
        workspace=ctx.workspace,
        key=ctx.secrets.get("teacher") if is_alone else None,
        top_logprobs=generation.logprobs,
    )
    required = required_logprobs(ctx)
    try:
        await prepared(model, ctx.progress("teach"))
        if required:
            _refuse_too_few(ctx, getattr(model, "most_logprobs", None), model.name)
        response = await model.dry_call(sampling, top_logprobs=generation.logprobs)
        if required:
            _refuse_too_few(ctx, num_told(response.logprobs), model.name)
            scorer = model.open_scorer() if isinstance(model, EndpointModel) else None
            ctx.can_score_text = scorer is not None and await scorer.can_score(required)
        if teacher.batch and ctx.config.data.logged_answers == "regenerate":
            await in_batches(model).batches.check()
    except TeacherRefused as error:
        if not required:
            raise
        raise TeacherRefused(
            f"{error} (loss.kind: {ctx.config.loss.kind} asks for {required} log-probabilities a "
            f"token, which is loss.targets.k: some endpoints tell fewer, some none; loss.kind: sft "
            f"needs none)"
        ) from None
    finally:
        await model.close()


def _refuse_without_layers(ctx: Context, teacher: ModelRef, student: ModelRef) -> None:
    what = "loss.hidden and loss.attention read the teacher's layers"
    if teacher.kind == "endpoint":
        raise ConfigError(
            f"{what}, but {teacher.source} only returns text; use neither of the two, or a teacher "
            f"whose weights are on this machine"
        )
    from potstill.models.weights import load_tokenizer

    ours, theirs = (vocab_fingerprint(load_tokenizer(ref)) for ref in (student, teacher))
    if ours != theirs:
        raise VocabMismatch(
            f"{what} token by token, but {teacher.name} and {student.name} have different "
            f"vocabularies; use neither of the two and learn the teacher's text, or a student of "
            f"the teacher's family"
        )


def _refuse_too_few(ctx: Context, most: int | None, name: str) -> None:
    """Raises ConfigError where an endpoint tells at most so many log-probabilities a token."""
    wanted = asked_generation(ctx).logprobs
    if most is None or most >= wanted:
        return
    key = "loss.targets.k" if wanted == required_logprobs(ctx) else "generation.logprobs"
    way_out = f"set loss.targets.k: {most}" if most else "use loss.kind: sft"
    if most and key != "loss.targets.k":
        way_out += f" and generation.logprobs: {most}, or less"
    raise ConfigError(
        f"{key} is {wanted}, but {name} tells at most {most} log-probabilities a token; {way_out}"
    )


def _refuse_without_probabilities(ctx: Context, teacher: ModelRef, student: ModelRef) -> None:
    kind = ctx.config.loss.kind
    if teacher.kind == "endpoint":
        if problem := _why_none_fit(ctx):
            raise ConfigError(f"loss.kind: {kind} with the endpoint {teacher.source}: {problem}")
        return
    from potstill.models.weights import load_tokenizer
    from potstill.targets.align import shared_tokens

    ours, theirs = (load_tokenizer(ref) for ref in (student, teacher))
    if vocab_fingerprint(ours) == vocab_fingerprint(theirs):
        return
    try:
        shared = shared_tokens(theirs, ours)
    except VocabMismatch as error:
        raise VocabMismatch(
            f"loss.kind: {kind} compares probabilities token by token, but {teacher.name} and "
            f"{student.name} have different vocabularies: {error}"
        ) from None
    ctx.tell(
        "score",
        "note",
        f"{len(shared.student_S):,} of the student's {len(ours):,} tokens are the teacher's too; "
        f"its probabilities are passed on if both cut the answers alike",
    )


def _listed(temperatures: Sequence[float]) -> str:
    return ", ".join(f"{one:g}" for one in temperatures)


def _why_none_fit(ctx: Context) -> str:
    """Why the log-probabilities that an endpoint will tell cannot be learned from; or nothing."""
    config = ctx.config
    generation, privacy = config.generation, privacy_of(ctx)
    if config.loss.targets.kind != "topk":
        return (
            f"loss.targets.kind: {config.loss.targets.kind} draws from all of the probabilities, "
            f"and an endpoint tells a few; use loss.targets.kind: topk"
        )
    if config.loss.temperatures != (1,):
        return (
            f"loss.temperature is {_listed(config.loss.temperatures)}, and what an endpoint tells "
            f"is cut to a few tokens, which cannot be softened later; use loss.temperature: 1"
        )
    if config.data.logged_answers == "reuse":
        return (
            "data.logged_answers: reuse asks nobody, so nobody tells probabilities; use "
            "loss.kind: sft, or logged_answers: regenerate"
        )
    if generation.prompting != "plain":
        return (
            f"generation.prompting: {generation.prompting} asks for more than the student learns, "
            f"and probabilities are of what was written; use loss.kind: sft, or prompting: plain"
        )
    if privacy.mode == "pseudonymise" and not privacy.in_data:
        return (
            "probabilities are of the text that the teacher wrote, and data.privacy puts other "
            "values into it; use data.privacy: {learn: pseudonyms}, or loss.kind: sft"
        )
    if logprobs_mode(ctx) != "raw" and not is_plainly_sampled(generation):
        found = "says nothing" if logprobs_mode(ctx) is None else "says processed"
        return (
            f"teacher.logprobs_mode {found}, so log-probabilities may be those of the sampling "
            f"settings instead of the model; set teacher.logprobs_mode: raw where the server tells "
            f"them before temperature and penalties, or generation: {{temperature: 1, top_p: 1}} "
            f"without penalties"
        )
    return ""
