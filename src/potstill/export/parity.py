"""Whether an artefact says what the model it was made of says.

The artefact answers prompts greedily; the model is then asked, token by token, what it would
have said at the same places. So every prediction is compared on an equal prefix, and one
early difference does not make all that follows incomparable.

Shape letters of this file:
    B  1     T  tokens of prompt and answer, or of the answer alone     V  vocabulary
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.data.render import end_token_ids, render_prompt, takes_system
from potstill.errors import ConfigError, ExportError
from potstill.export.engine import Continuation, Engine, OwnTurns
from potstill.export.manifest import Parity, note_parity, read_manifest
from potstill.models.weights import load_weights
from potstill.protocols import resolve_attribute
from potstill.types import Message

FIGURES = ("argmax_agreement", "mean_kl_nats", "max_logprob_difference", "tokenizer_agreement")
MIN_PROMPTS = 32
NUM_TOKENS = 24
NUM_TOP = 20
LIKELY = 1e-3
"""Log-probabilities are compared where the model gives at least this: far out in the tail a
large difference means nothing."""

_EXACT = {"argmax_agreement": 1.0, "max_logprob_difference": 1e-3}
LIMITS: dict[str, dict[str, float]] = {
    **{quant: _EXACT for quant in ("f32", "fp32", "float32")},
    "int8": {"mean_kl_nats": 0.01},
    "int4": {"mean_kl_nats": 0.10},
    "f16": {"argmax_agreement": 0.995},
    "bf16": {"argmax_agreement": 0.995},
    "q8_0": {"mean_kl_nats": 0.01},
    "q4_0": {"mean_kl_nats": 0.10},
    "q4_1": {"mean_kl_nats": 0.10},
    "adapter": {"argmax_agreement": 0.995},
}
"""By number format. Agreements are least values, the others largest ones."""

ENGINES = {
    "gguf": "potstill.export.llama_cpp:run_gguf",
    "huggingface": "potstill.export.folder_engine:run_folder",
    "ctranslate2": "potstill.export.embedded:run_embedded",
    "onnx": "potstill.export.embedded:run_embedded",
}
"""Format of an artefact -> what runs it."""

OWN_TURNS = {
    "ctranslate2": "potstill.export.embedded:own_turns",
    "onnx": "potstill.export.embedded:own_turns",
}
"""Format of an artefact -> what tells how it renders conversations and ends answers itself."""


def check_artefact(
    model_dir: Path,
    artefact: Path,
    prompts: Sequence[Sequence[Message]],
    *,
    engine: Engine | None = None,
    limits: Mapping[str, float] | None = None,
    min_prompts: int = MIN_PROMPTS,
    keep_failed: bool = False,
) -> Parity:
    """Compares an artefact with its model folder and writes the figures into its manifest.

    Args:
        artefact: Its main file, beside manifest.json.
        prompts: At least `min_prompts`; the first 64 are used.
        engine: What runs the file; that of its format by default.
        limits: Instead of those of the number format, one by one; noted in the manifest.
        keep_failed: Leave an artefact that failed on disk, to look at it.

    Raises:
        ExportError: If the artefact differs by more than its limits. Its folder is removed
            then, so that nobody ships it by mistake.
    """
    if len(prompts) < min_prompts:
        raise ExportError(
            f"comparing an export needs at least {min_prompts} prompts, got {len(prompts)}; "
            f"give more test or validation records"
        )
    folder = artefact.parent
    manifest = read_manifest(folder)
    changed = dict(limits or {})
    try:
        if manifest.quant not in LIMITS:
            raise ExportError(f"nobody said how near {manifest.quant!r} must be; see LIMITS")
        engine = engine or resolve_attribute(ENGINES[manifest.format])
        model, tokenizer = load_weights(model_dir, dtype="float32")
        ids = [list(render_prompt(tokenizer, turns)) for turns in prompts[:64]]
        asked = [(tokenizer.decode(row, skip_special_tokens=False), row) for row in ids]
        found = engine(artefact, asked, NUM_TOKENS, NUM_TOP)
        kept = {**LIMITS[manifest.quant], **changed}
        by = {"engine": getattr(engine, "__name__", "engine"), "changed_limits": changed}
        parity = compare(model, tokenizer, ids, found, limits=kept).model_copy(update=by)
        if manifest.format in OWN_TURNS:
            tell = resolve_attribute(OWN_TURNS[manifest.format])
            ends = end_token_ids(tokenizer, model.generation_config)
            parity = _with_turns(parity, tokenizer, ends, prompts[:64], tell, artefact)
        note_parity(folder, parity)
        if not parity.passed:
            raise ExportError(f"{artefact.name} is not equal to {model_dir}: {failures(parity)}")
    except BaseException:
        if not keep_failed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return parity


check_gguf = check_artefact
"""Its name where the artefact is known to be a GGUF file."""


def _with_turns(
    parity: Parity,
    tokenizer: Any,
    ends: Sequence[int],
    prompts: Sequence[Sequence[Message]],
    tell: OwnTurns,
    artefact: Path,
) -> Parity:
    """The same, with how the artefact itself renders conversations and ends its answers."""
    # Where the template has no place for a system turn, the caller joins it to the user's.
    has_system = takes_system(tokenizer)
    asked = [[turn for turn in turns if has_system or turn.role != "system"] for turns in prompts]
    own_ends, rendered = tell(artefact, asked)
    same = sum(
        render_prompt(tokenizer, turns) == own for turns, own in zip(asked, rendered, strict=True)
    )
    share = same / len(prompts) if set(own_ends) == set(ends) else 0.0
    limits = {**parity.limits, "template_agreement": 1.0}
    found = parity.model_copy(update={"template_agreement": share, "limits": limits})
    return found.model_copy(update={"passed": not failures(found)})


@torch.inference_mode()
def compare(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    found: Sequence[Continuation],
    *,
    limits: dict[str, float],
) -> Parity:
    """The figures of a comparison; `passed` says whether all limits are kept."""
    ends = set(end_token_ids(tokenizer, model.generation_config))
    agree, num_tokens, kl, difference, same_tokens, runs_on = 0, 0, [], 0.0, 0, False
    for ids, continuation in zip(prompts, found, strict=True):
        same_tokens += tuple(ids) == continuation.prompt_ids
        said = [step.token for step in continuation.steps]
        runs_on |= any(token in ends for token in said[:-1])
        row_BT = torch.tensor([[*ids, *said]])
        logits_TV = model(row_BT, logits_to_keep=len(said) + 1).logits[0, :-1]
        logprobs_TV = logits_TV.float().log_softmax(-1)
        for own_V, step in zip(logprobs_TV, continuation.steps, strict=True):
            num_tokens += 1
            agree += int(own_V.argmax()) == step.token
            if step.top:
                step_kl, step_difference = _distance(own_V, step.top)
                kl.append(step_kl)
                difference = max(difference, step_difference)
    if not kl:
        raise ExportError("the artefact answered every prompt with nothing; its end token is wrong")
    if runs_on:
        raise ExportError("the artefact talks on after its end token; its end-of-turn id is wrong")
    parity = Parity(
        num_prompts=len(prompts),
        num_tokens=num_tokens,
        argmax_agreement=agree / num_tokens,
        mean_kl_nats=math.fsum(kl) / len(kl),
        max_logprob_difference=difference,
        tokenizer_agreement=same_tokens / len(prompts),
        limits={"tokenizer_agreement": 1.0, **limits},
        passed=False,
    )
    return parity.model_copy(update={"passed": not failures(parity)})


def read_limits(given: Sequence[str]) -> dict[str, float]:
    """Limits from `NAME=NUMBER`, such as `mean_kl_nats=0.2`.

    Raises:
        ConfigError: If a name is no figure of a comparison, or the number none that can be kept.
    """
    found = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if name not in FIGURES or not 0 <= found[name] < math.inf:
            raise ConfigError(
                f"--limit {text}: not a limit; write NAME=NUMBER with a name of "
                f"{', '.join(FIGURES)} and a number from 0 on"
            )
    return found


def failures(parity: Parity) -> str:
    """The limits that are not kept, in words; empty when all are."""
    broken = []
    for name, limit in parity.limits.items():
        value = getattr(parity, name)
        least = name.endswith("agreement")
        # Written so that a value that is not a number breaks its limit.
        if not (value >= limit if least else value <= limit):
            word = "at least" if least else "at most"
            broken.append(f"{name} is {value:.4g} and must be {word} {limit:g}")
    return "; ".join(broken)


def _distance(own_V: torch.Tensor, top: Mapping[int, float]) -> tuple[float, float]:
    """KL(model || artefact) with all other tokens as one, and the largest difference."""
    pairs = [(float(own_V[token]), logprob) for token, logprob in top.items()]
    kl = sum(math.exp(own) * (own - other) for own, other in pairs)
    tails = [max(1.0 - math.fsum(map(math.exp, side)), 1e-9) for side in zip(*pairs, strict=True)]
    kl += tails[0] * math.log(tails[0] / tails[1])
    likely = [abs(own - other) for own, other in pairs if math.exp(own) >= LIKELY]
    return kl, max(likely, default=0.0)
