"""Others who ask the same server, for benchmarks/asking.py: asking_peers.py WHO URL NUMBER K

Runs in the environment of whoever is measured and needs nothing of ours. Prints as JSON how many
requests a second it made; 64 are open at once. K log-probabilities are asked for, where K > 0.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import time

IN_FLIGHT = 64


def prompt(number: int) -> str:
    """The same as benchmarks/asking.py asks."""
    return f"Parcel {number}: when does it come? " * 8


async def ask_openai(url: str, number: int, k: int) -> float:
    """OpenAI's SDK with asyncio, the answers thrown away."""
    from openai import AsyncOpenAI

    more = {"logprobs": True, "top_logprobs": k} if k else {}
    client = AsyncOpenAI(base_url=url, api_key="none")
    numbers = iter(range(number))

    async def work() -> None:
        for n in numbers:
            answer = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": prompt(n)}],
                temperature=0.7,
                max_tokens=512,
                seed=n,
                **more,
            )
            assert answer.choices[0].message.content

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - started


def ask_curator(url: str, number: int, k: int) -> float:
    """bespokelabs-curator, which keeps its answers in files."""
    assert not k, "it tells no log-probabilities"
    # It counts tokens with a table that is fetched from the network; litellm brings it along.
    (litellm,) = importlib.util.find_spec("litellm").submodule_search_locations
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            TIKTOKEN_CACHE_DIR=f"{litellm}/litellm_core_utils/tokenizers",
            CURATOR_CACHE_DIR=folder,
            CURATOR_DISABLE_CACHE="1",
            CURATOR_DISABLE_RICH_DISPLAY="1",
            TELEMETRY_ENABLED="false",
            OPENAI_API_KEY="none",
        )
        from bespokelabs import curator

        params = {
            "base_url": url,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": IN_FLIGHT,
        }
        model = curator.LLM(model_name="fake", backend="openai", backend_params=params)
        prompts = [prompt(n) for n in range(number)]
        started = time.perf_counter()
        found = model(prompts)
        seconds = time.perf_counter() - started
        assert len(getattr(found, "dataset", found)) == number
    return seconds


def main(who: str, url: str, number: int, k: int) -> None:
    if who == "openai":
        seconds, package = asyncio.run(ask_openai(url, number, k)), "openai"
    else:
        seconds, package = ask_curator(url, number, k), "bespokelabs-curator"
    version = importlib.metadata.version(package)
    print(json.dumps({"per_second": number / seconds, "version": f"{package} {version}"}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
