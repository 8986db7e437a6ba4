"""Runs a GGUF file in llama.cpp's own server, in a process of its own, on loopback.

A fault in native code then ends that process and not ours. `python -m
potstill.export.llama_cpp FILE CONTEXT CACHE` is the child: it writes its address to standard
output and ends when its standard input does, so it never outlives us.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ExportError, MissingExtra
from potstill.export.engine import Continuation, Step

ANSWER_SECONDS = 300.0
"""A prompt of thousands of tokens on one slow core."""


def run_gguf(
    artefact: Path, prompts: Sequence[tuple[str, Sequence[int]]], num_tokens: int, num_top: int
) -> list[Continuation]:
    """Greedy answers of a GGUF file to rendered prompts: an `Engine` of `parity`.

    Raises:
        MissingExtra: If llama.cpp is not installed.
        ExportError: If it cannot load the file or ends while answering.
    """
    context = max(len(ids) for _, ids in prompts) + num_tokens + 8
    # A cache in f16 would hide how exact a file in f32 is.
    cache = "f32" if artefact.stem.endswith("f32") else "f16"
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(artefact), str(context), cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            address = child.stdout.readline().decode().strip()
            if not address:
                raise ExportError(_why(artefact, child.wait(), errors))
            return [_ask(address, text, ids, num_tokens, num_top) for text, ids in prompts]
        except (urllib.error.URLError, OSError, KeyError, ValueError) as error:
            raise ExportError(f"{artefact}: llama.cpp did not answer: {error}") from error
        finally:
            child.stdin.close()
            child.stdout.close()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ask(
    address: str, text: str, ids: Sequence[int], num_tokens: int, num_top: int
) -> Continuation:
    asked = {"content": text, "add_special": False, "parse_special": True}
    own_ids = _post(f"{address}/tokenize", asked)["tokens"]
    answer = _complete(address, ids, num_tokens, num_top)
    tokens, told = answer["tokens"], answer.get("completion_probabilities", [])
    if [step["id"] for step in told] == tokens:
        return Continuation(tuple(own_ids), tuple(map(_step, told)))
    # The server keeps back the probabilities of a token that ends inside a character of
    # several bytes, without saying of which: ask for each token on its own.
    steps = []
    for place, token in enumerate(tokens):
        alone = _complete(address, [*ids, *tokens[:place]], 1, num_top)
        told = alone.get("completion_probabilities", [])
        steps.append(_step(told[0]) if told else Step(token, {}))
    return Continuation(tuple(own_ids), tuple(steps))


def _complete(address: str, ids: Sequence[int], num_tokens: int, num_top: int) -> dict[str, Any]:
    return _post(
        f"{address}/completion",
        {
            "prompt": list(ids),
            "n_predict": num_tokens,
            "temperature": 0.0,
            "n_probs": num_top,
            "cache_prompt": True,
            "return_tokens": True,
        },
    )


def _step(told: dict[str, Any]) -> Step:
    return Step(told["id"], {top["id"]: top["logprob"] for top in told["top_logprobs"]})


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    # Loopback must not go through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_SECONDS) as answer:
        return json.load(answer)


def _why(artefact: Path, code: int, errors: Any) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    if any("No module named 'xllamacpp'" in line for line in lines):
        raise MissingExtra(
            'checking a GGUF file needs llama.cpp: pip install "potstill[export]"'
        ) from None
    said = [line for line in lines if "error" in line.lower()] or lines
    last = said[-1].strip() if said else "nothing"
    return f"{artefact}: llama.cpp cannot load this file (exit {code}); it said: {last}"


def main(artefact: str, context: str, cache: str) -> None:
    """The child: serves one file until standard input ends."""
    import xllamacpp

    # llama.cpp writes to standard output too; only the address may go there.
    answer = os.dup(1)
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = artefact
    params.n_ctx = int(context)
    params.n_parallel = 1
    params.port = 0
    params.warmup = False
    params.cpuparams.n_threads = os.cpu_count() or 1
    if cache == "f32":
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    os.write(answer, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
