"""Chat templates to token ids and loss masks.

The rule of this file: the prompt's ids in training are the prompt's ids at inference. So the
prompt is rendered as for generation, and the answer and the end-of-turn token follow it. What a
template would do to the answer in a whole conversation (a block of empty thoughts, a line break
after the end token) is not learned. A space between prompt and answer is.

A tokenizer without a chat template gets a plain one, the same for training and inference:

    {system}

    User: {user}
    Assistant: {assistant}
    User: {user}
    Assistant:

with a space in front of each assistant text, and the tokenizer's end-of-text token after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from potstill.errors import DataError
from potstill.types import Message

_PROBE_SYSTEM = "Probe of the system turn 7f3a"
_PROBE_USER = "Probe of the user turn 91c4"
_PROBE_ANSWER = "Probe of the answer 5d2e"


class Rendered(NamedTuple):
    """One training sequence."""

    ids: list[int]
    loss_mask: list[int]
    """1 on the answer and its end-of-turn token, 0 on the prompt. As long as `ids`."""


class _Facts(NamedTuple):
    """What a template does, found out by rendering probes."""

    template: Any
    has_system: bool
    lead: str
    """White space between the generation prompt and the answer."""

    end_id: int


_KNOWN: WeakKeyDictionary[Any, _Facts] = WeakKeyDictionary()


def render(
    tokenizer: Any, messages: Sequence[Message], answer: str, *, max_tokens: int | None = None
) -> Rendered | None:
    """Prompt and answer as one sequence; None where it is longer than `max_tokens`.

    The caller writes the rejection (`too_long`): nothing is ever cut.

    Args:
        messages: The prompt, ending with a user turn. A system turn always reaches the model:
            where the template has no place for it, it opens the first user turn.

    Raises:
        DataError: If the template refuses the conversation, or no token ends a turn.
    """
    facts = _facts(tokenizer)
    text, prompt = _prompt(tokenizer, messages, facts)
    whole = _encode(tokenizer, text + facts.lead + answer)
    # Tokens may merge over the border. Then the answer is encoded on its own, because at
    # inference the prompt is there before the answer is.
    clean = whole[: len(prompt)] == prompt and len(whole) > len(prompt)
    learned = whole[len(prompt) :] if clean else _encode(tokenizer, facts.lead + answer)
    if not set(learned).isdisjoint(tokenizer.all_special_ids):
        # An answer that spells a control token must not become one.
        learned = tokenizer(
            facts.lead + answer, add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
    learned = [*learned, facts.end_id]
    if max_tokens is not None and len(prompt) + len(learned) > max_tokens:
        return None
    return Rendered([*prompt, *learned], [0] * len(prompt) + [1] * len(learned))


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids that a model is given to answer `messages`.

    Raises:
        DataError: If the template refuses the conversation.
    """
    return _prompt(tokenizer, messages, _facts(tokenizer))[1]


def rendered_text(tokenizer: Any, messages: Sequence[Message], answer: str) -> str:
    """What `render` turns into ids: prompt, answer and end-of-turn token as one text.

    Raises:
        DataError: As `render`.
    """
    facts = _facts(tokenizer)
    text, _ = _prompt(tokenizer, messages, facts)
    return f"{text}{facts.lead}{answer}{tokenizer.convert_ids_to_tokens(facts.end_id)}"


def end_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Tokens that end an answer: the template's end of turn first, then the model's own."""
    ids = [_facts(tokenizer).end_id, tokenizer.eos_token_id]
    configured = getattr(generation_config, "eos_token_id", None)
    ids += configured if isinstance(configured, list | tuple) else [configured]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template has a place for a system turn."""
    return _facts(tokenizer).has_system


def template_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what turns messages into text: the template and the tokens it may name."""
    parts = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def vocab_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of all (id, token) pairs. Rows that pad the embedding do not count."""
    pairs = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def _prompt(tokenizer: Any, messages: Sequence[Message], facts: _Facts) -> tuple[str, list[int]]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if not facts.has_system:
        turns = _system_into_user(turns)
    text = _text(tokenizer, turns, generate=True)
    return text, _encode(tokenizer, text)


def _system_into_user(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    rest = [turn for turn in turns if turn["role"] != "system"]
    if not system:
        return rest
    first = next(index for index, turn in enumerate(rest) if turn["role"] == "user")
    joined = {"role": "user", "content": f"{system}\n\n{rest[first]['content']}"}
    return [*rest[:first], joined, *rest[first + 1 :]]


def _text(tokenizer: Any, turns: list[dict[str, str]], *, generate: bool) -> str:
    if not tokenizer.chat_template:
        return _plain_text(tokenizer, turns, generate=generate)
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template of {_name(tokenizer)} refuses a conversation of {roles}: {error}"
        ) from None


def _plain_text(tokenizer: Any, turns: list[dict[str, str]], *, generate: bool) -> str:
    names = {"user": "User", "assistant": "Assistant"}
    system = [f"{turn['content']}\n\n" for turn in turns if turn["role"] == "system"]
    lines = [f"{names[turn['role']]}: {turn['content']}" for turn in turns if turn["role"] in names]
    if generate:
        lines.append("Assistant:")
    # Some tokenizers open every text with a token of their own; a template would write it.
    opens = (
        tokenizer.bos_token_id is not None
        and tokenizer.bos_token_id in (tokenizer("")["input_ids"][:1])
    )
    return (tokenizer.bos_token if opens else "") + "".join(system) + "\n".join(lines)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _facts(tokenizer: Any) -> _Facts:
    known = _KNOWN.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _KNOWN[tokenizer] = _probe(tokenizer)
    return known


def _probe(tokenizer: Any) -> _Facts:
    asked = [{"role": "user", "content": _PROBE_USER}]
    prompt = _text(tokenizer, asked, generate=True)
    answered = [*asked, {"role": "assistant", "content": _PROBE_ANSWER}]
    whole = _text(tokenizer, answered, generate=False)
    before, _, after = whole.rpartition(_PROBE_ANSWER)
    lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
    return _Facts(
        template=tokenizer.chat_template,
        has_system=_has_system(tokenizer, asked),
        lead="" if lead.strip() else lead,
        end_id=_end_id(tokenizer, after),
    )


def _has_system(tokenizer: Any, asked: list[dict[str, str]]) -> bool:
    """Whether the template puts a system turn into the text; some refuse it, some drop it."""
    try:
        text = _text(
            tokenizer, [{"role": "system", "content": _PROBE_SYSTEM}, *asked], generate=True
        )
    except DataError:
        return False
    return _PROBE_SYSTEM in text


def _end_id(tokenizer: Any, after: str) -> int:
    """The first control token behind an answer, or the tokenizer's end-of-text token."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {
        id_ for id_, token in added.items() if getattr(token, "special", False)
    }
    for id_ in _encode(tokenizer, after):
        if id_ in special:
            return id_
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"nothing ends an answer: the template of {_name(tokenizer)} writes no control token "
            f"after it and the tokenizer has no eos_token; set one of them"
        )
    return tokenizer.eos_token_id
