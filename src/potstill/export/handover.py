"""Commands for tools that have an environment of their own: printed, never run.

They are as each tool's documentation of November 2026 gives them (vLLM 0.17, Olive 0.9,
optimum-intel, optimum-executorch with ExecuTorch 1.3, mlx-lm 0.26).
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potstill.data.render import end_token_ids, render_prompt
from potstill.errors import ConfigError
from potstill.models.weights import load_tokenizer
from potstill.types import Message


class Tool(NamedTuple):
    """A tool and what it is told; {model}, {name}, {out} and {context} are filled in."""

    install: str
    commands: tuple[str, ...]
    stops: str
    """How it learns where an answer ends."""

    note: str


TOOLS = {
    "vllm": Tool(
        install="vllm",
        commands=("vllm serve {model} --served-model-name {name} --max-model-len {context}",),
        stops="vLLM reads them from generation_config.json; do not pass --generation-config vllm",
        note="serves OpenAI's API on port 8000, as it is: nothing is converted",
    ),
    "olive": Tool(
        install="'olive-ai[cpu]' transformers",
        commands=(
            "olive optimize --model_name_or_path {model} --device cpu "
            "--provider CPUExecutionProvider --precision int4 --output_path {out}",
        ),
        stops="look for them in eos_token_id of the genai_config.json that it writes",
        note="writes ONNX in 4 bits",
    ),
    "openvino": Tool(
        install="'optimum-intel[openvino]'",
        commands=(
            "optimum-cli export openvino --model {model} --task text-generation-with-past "
            "--weight-format int4 {out}",
        ),
        stops="look for them in the generation_config.json that it copies",
        note="optimum needs an older transformers than Potstill: an environment of its own",
    ),
    "executorch": Tool(
        install="optimum-executorch",
        commands=(
            "optimum-cli export executorch --model {model} --task text-generation "
            "--recipe xnnpack --use_custom_sdpa --use_custom_kv_cache --max_seq_len {context} "
            "--qlinear 8da4w --qembedding 8w --output_dir {out}",
        ),
        stops="the program knows none of them: the app that runs it has to stop there",
        note="optimum needs an older transformers than Potstill: an environment of its own",
    ),
    "mlx": Tool(
        install="mlx-lm",
        commands=(
            "mlx_lm.convert --hf-path {model} --mlx-path {out} -q",
            "mlx_lm.generate --model {out} --prompt 'Hello'",
        ),
        stops="mlx-lm takes the tokenizer's and config.json's; check one answer",
        note="runs on Apple silicon",
    ),
}


def handover(tool: str, folder: Path, *, name: str) -> str:
    """A shell script that makes and runs the model with a tool, and what must be true after it.

    Args:
        name: What the model is called there, and its output folder after.

    Raises:
        ConfigError: If there is no such tool here; the message names the nearest.
    """
    if tool not in TOOLS:
        near = difflib.get_close_matches(tool, TOOLS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no hand-over is called {tool!r}: {hint}There are: {', '.join(TOOLS)}")
    known = TOOLS[tool]
    tokenizer = load_tokenizer(folder)
    ids = end_token_ids(tokenizer, _Configured(_json(folder / "generation_config.json")))
    values = {
        "model": shlex.quote(str(folder)),
        "name": shlex.quote(name),
        "out": shlex.quote(f"{name}-{tool}"),
        "context": _json(folder / "config.json").get("max_position_embeddings", 2048),
    }
    place = f"{tool}-env"
    lines = [
        f"# {name} for {tool}: {known.note}",
        f"python3 -m venv {place}",
        f"{place}/bin/pip install {known.install}",
        *(f"{place}/bin/{command.format(**values)}" for command in known.commands),
        "",
        *_facts(tokenizer, ids, known),
        "# Not compared with the source yet: ask both a few prompts, or give the endpoint to",
        "# potstill compare.",
    ]
    return "\n".join(lines)


def _facts(tokenizer: Any, ids: Sequence[int], tool: Tool) -> list[str]:
    """What the model was trained with, which the tool must keep."""
    hello = render_prompt(tokenizer, [Message(role="user", content="Hello")])
    text = tokenizer.decode(hello, skip_special_tokens=False)
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)} ({index})" for index in ids)
    return [
        f"# An answer ends at: {json.dumps(stops, ensure_ascii=False)}",
        f"#   {tool.stops}.",
        f'# The prompt "Hello" must become: {json.dumps(text, ensure_ascii=False)}',
        "#   that is the folder's own chat template; give the tool no other.",
    ]


class _Configured(NamedTuple):
    tree: dict[str, Any]

    @property
    def eos_token_id(self) -> Any:
        return self.tree.get("eos_token_id")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
