"""An Ollama Modelfile: the template the model was trained with, and where it stops.

Most exports that "turn to gibberish" have another template than in training, or no stop
token. So a template is written only where it is known to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
"""ChatML in Go's template language."""

PROBE = (("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"))


def modelfile(gguf_name: str, tokenizer: Any, end_ids: Sequence[int]) -> str:
    """Text of the Modelfile for a GGUF file beside it."""
    lines = [f"FROM ./{gguf_name}"]
    if is_chatml(tokenizer):
        lines.append(f'TEMPLATE """{_system_default(tokenizer)}{CHATML}"""')
    else:
        lines.append("# TEMPLATE: Ollama reads the chat template inside the GGUF file.")
    for index in end_ids:
        lines.append(f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(index)}"')
    # Ollama's own 1.1 punishes words that come again, such as those of the question.
    lines += ["PARAMETER repeat_penalty 1", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def is_chatml(tokenizer: Any) -> bool:
    """Whether the chat template writes plain ChatML, found out by rendering a conversation."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": role, "content": content} for role, content in PROBE]
    found = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    plain = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in PROBE)
    return found == plain + "<|im_start|>assistant\n"


def _system_default(tokenizer: Any) -> str:
    """What the template writes in front when a conversation has no system turn, if anything."""
    turn = [{"role": "user", "content": "U"}]
    found = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    default = found.removesuffix("<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")
    if not default or default == found:
        return ""
    condition = '{{- if not (eq (index .Messages 0).Role "system") }}'
    return condition + default + "{{ end }}"
