"""Foundry Local's inference_model.json: a model's name and its chat template, piece by piece.

Foundry Local finds a model in its cache by this file and genai_config.json, and puts a
conversation together from the pieces, with `{Content}` in place of each turn's text. Phi's
template is not ChatML; so the pieces are read off the template itself.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

CONTENT = "{Content}"
_TURNS = tuple({"role": role, "content": CONTENT} for role in ("system", "user", "assistant"))


def inference_model(name: str, tokenizer: Any) -> dict[str, Any]:
    """The file's content.

    Where a template cannot be cut into pieces that give the same text again, there is one
    piece for a single question, as in Microsoft's own instructions.
    """
    return {"Name": name, "PromptTemplate": _pieces(tokenizer)}


def _pieces(tokenizer: Any) -> dict[str, str]:
    def text(*turns: dict[str, str], ask: bool = False) -> str:
        return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask)

    system, user, assistant = _TURNS
    single = {"assistant": CONTENT, "prompt": text(user, ask=True)}
    try:
        one, two = text(system, user), text(system, user, assistant)
        three = text(system, user, assistant, user)
        asked = text(system, user, assistant, user, ask=True)
    except TemplateError:
        return single
    pieces = {
        "user": three.removeprefix(two),
        "assistant": two.removeprefix(one),
        "prompt": asked.removeprefix(two),
    }
    pieces["system"] = one.removesuffix(pieces["user"])
    order = ("system", "user", "assistant", "prompt")
    joined = "".join(pieces[role] for role in order)
    is_whole = joined == asked and all(pieces[role].count(CONTENT) == 1 for role in order)
    return {role: pieces[role] for role in order} if is_whole else single
