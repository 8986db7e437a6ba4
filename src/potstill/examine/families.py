"""Whose model is it: families of models, and what a judge of the same family may be blind to.

Models know their own answers when they see them, and favour them: Panickssery, Bowman and Feng
(2024), "LLM evaluators recognize and favor their own generations", arXiv:2404.13076. What is like
their own has to be suspected as well: answers of relatives, and of students that learned from one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

FAMILIES = {
    "qwen": r"qwen|qwq",
    "smollm": r"smollm",
    "deepseek": r"deepseek",
    "mistral": r"mi[sx]tral|ministral|codestral|magistral|devstral",
    "phi": r"phi",
    "gemma": r"gemma|gemini",
    "gpt": r"gpt|o[1-9](?:-(?:mini|pro|preview))?|davinci",
    "claude": r"claude",
    "command": r"command|c4ai|aya",
    "granite": r"granite",
    "olmo": r"olmo|tulu",
    "falcon": r"falcon",
    "glm": r"(?:chat)?glm",
    "kimi": r"kimi|moonlight",
    "grok": r"grok",
    "yi": r"yi",
    "internlm": r"internlm",
    "minicpm": r"minicpm",
    "llama": r"llama|nemotron|tinyllama|vicuna",
}
"""Name -> how its models are called. Distillations are told by the first family in their name."""

_PATTERN = re.compile(
    r"(?<![a-z0-9])(?:"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in FAMILIES.items())
    + r")(?![a-z])",
    re.I,
)


def family_of(names: Iterable[str | None]) -> str | None:
    """The family that the first telling name tells; None where none does.

    Args:
        names: From the surest to the least sure: model's name, short name, place. Of a folder
            its own name counts, and then the kind of model that its config.json names.
    """
    given = [name for name in names if name]
    for name in given:
        match = _PATTERN.search(name.rstrip("/").rpartition("/")[2] if "://" not in name else "")
        if match:
            return match.lastgroup
    for name in given:
        kind = _model_type(name)
        match = _PATTERN.search(kind)
        if match or kind:
            return match.lastgroup if match else kind
    return None


def _model_type(place: str) -> str:
    file = Path(place) / "config.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # not a folder of a model: nothing is told


def family_warnings(
    judge: str | None, judge_name: str, others: Mapping[str, str | None]
) -> list[str]:
    """Sentences on what the judge may favour.

    Args:
        judge: The judge's family; None where nothing tells it.
        others: Role in a sentence -> family of that model.
    """
    if judge is None:
        return [
            f"the family of the judge {judge_name} is not known, so it is open whether it judges "
            f"relatives"
        ]
    same = [role for role, family in others.items() if family == judge]
    if not same:
        return []
    return [
        f"the judge {judge_name} is of the family {judge}, like {' and '.join(same)}: judges "
        f"favour answers that are like their own; ask one of another family too"
    ]
