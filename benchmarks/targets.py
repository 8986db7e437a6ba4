"""How small the teacher's probabilities become on disk, how right they stay, and how fast they are
read: python benchmarks/targets.py [--data FILE]

SmolLM2-135M-Instruct scores paragraphs of this repository's own pages as answers to "write the next
paragraph", or the answers of FILE (rows in any shape that `train_data` may have).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.data.load import load_dataset
from potstill.data.render import Rendered, render, template_fingerprint
from potstill.models.local import LocalModel
from potstill.pipeline.story import processor
from potstill.targets.codec import topk_row
from potstill.targets.manifest import Manifest
from potstill.targets.store import TargetStore, TargetWriter
from potstill.teach.score import drawn, score
from potstill.types import Message

ROOT = Path(__file__).resolve().parent.parent
STEP_SECONDS = 0.6
"""A training step of the demo's student: 200 to 400 loss positions."""

ARMS: dict[str, dict[str, Any]] = {
    "k = 64": {"k": 64},
    "k = 64, three temperatures": {"k": 64, "temperatures": (2.0, 4.0)},
    "k = 16": {"k": 16},
    "12 draws": {"kind": "sampled", "k": 12},
    "50 draws": {"kind": "sampled", "k": 50},
}
WIDE = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--positions", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "targets.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = LocalModel("smollm2-135m")
    texts = answers(options.data) if options.data else paragraphs()
    rows = rendered(teacher.tokenizer, texts, options.positions)
    lines = head(options, rows)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings) in enumerate(ARMS.items()):
            path = Path(folder) / str(number)
            manifest = scored(teacher, rows, path, settings)
            lines.append(line(name, manifest, opened(teacher, path)))
            print(lines[-1], flush=True)
        store = opened(teacher, Path(folder) / "0")
        for name, places in wider(teacher).items():
            manifest = moved(store, places, Path(folder) / name)
            lines.append(line(name, manifest, None))
            print(lines[-1], flush=True)
    lines += ["", *unbiased(teacher, rows)]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def paragraphs() -> list[tuple[str, str]]:
    """Each paragraph of the pages after the one before it."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        parts = [part.strip() for part in page.read_text(encoding="utf-8").split("\n\n")]
        found += [pair for pair in itertools.pairwise(parts) if len(pair[1]) > 80]
    return [
        (f"Write the next paragraph after this one.\n\n{before}", after) for before, after in found
    ]


def answers(file: Path) -> list[tuple[str, str]]:
    records = load_dataset(file)
    return [(r.messages[-1].content, r.reference) for r in records if r.reference]


def rendered(tokenizer: Any, texts: list[tuple[str, str]], positions: int) -> list[Rendered]:
    random.Random(0).shuffle(texts)
    rows, total = [], 0
    for prompt, answer in texts:
        row = render(tokenizer, (Message(role="user", content=prompt),), answer, max_tokens=1024)
        if row is not None:
            rows.append(row)
            total += sum(row.loss_mask)
        if total >= positions:
            return rows
    return rows


def scored(
    teacher: LocalModel, rows: list[Rendered], path: Path, settings: dict[str, Any]
) -> Manifest:
    return score(
        teacher,
        rows,
        path,
        temperature=1.0,
        student_vocab_fingerprint=teacher.vocab_fingerprint,
        **settings,
    )


def opened(teacher: LocalModel, path: Path) -> TargetStore:
    return TargetStore(
        path,
        vocab_fingerprint=teacher.vocab_fingerprint,
        template_fingerprint=template_fingerprint(teacher.tokenizer),
        temperature=1.0,
    )


def milliseconds(store: TargetStore, positions: int) -> float:
    """Time to read so many positions in one batch, the fastest of seven."""
    keys, total = [], 0
    for key in itertools.cycle(store.keys()):
        keys.append(key)
        total += len(store.lookup(key).ids_NK)
        if total >= positions:
            break
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        store.batch(keys)
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds) * positions / total


def wider(teacher: LocalModel) -> dict[str, np.ndarray]:
    """Ids of SmolLM2 as ids of a vocabulary three times as large."""
    num = len(teacher.tokenizer)
    generator = np.random.default_rng(0)
    spread = (np.arange(num) * WIDE // num) + generator.integers(0, WIDE // num, num)
    return {
        "k = 64, ids spread over 151,936 in their order": spread,
        "k = 64, ids scattered over 151,936": generator.permutation(WIDE)[:num],
    }


def moved(store: TargetStore, places: np.ndarray, path: Path) -> Manifest:
    settings = store.settings.model_copy(update={"vocab_size": WIDE})
    writer = TargetWriter(path, settings)
    found = [store.lookup(key) for key in store.keys()]
    writer.write(store.keys(), [topk_row(places[row.ids_NK], row.logprobs_NK) for row in found])
    return writer.finish()


def head(options: argparse.Namespace, rows: list[Rendered]) -> list[str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    machine, num = processor(), sum(sum(row.loss_mask) for row in rows)
    day = datetime.date.today()
    return [
        "# How small are the teacher's probabilities on disk?",
        "",
        f"{day}, commit {commit}, {machine['name']}, {options.threads} threads on "
        f"{machine['cores']} shared cores, torch {torch.__version__}; "
        f"`python benchmarks/targets.py{' --data FILE' if options.data else ''}`. Outputs of "
        f"SmolLM2-135M-Instruct (49,152 tokens) on {len(rows):,} answers, {num:,} positions.",
        "",
        "Bytes are those of all files, headers and index included. Error: mean KL divergence "
        "between what the codec was given and what it gives back, over the kept tokens and one "
        "bucket for the rest, at the worst of the stored temperatures. Reading: one batch of 300 "
        f"or 2,000 positions, the fastest of seven, and its share of a step of {STEP_SECONDS:g} s.",
        "",
        "| kept | tokens | bytes a position | ids | values | tail | index | mass kept "
        "| error (nats) | at worst | reading 300 | of a step | reading 2,000 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def line(name: str, manifest: Manifest, store: TargetStore | None) -> str:
    parts = " | ".join(f"{manifest.parts[part]:.1f}" for part in ("ids", "values", "tail", "index"))
    cells = [
        name,
        f"{manifest.tokens_per_position:.1f}",
        f"**{manifest.bytes_per_position:.1f}**",
        parts,
    ]
    if store is None:  # its input was rounded before
        cells += ["", "", ""]
    elif manifest.at:
        worst = max(manifest.at, key=lambda at: at.error_nats)
        cells.append(f"{manifest.mass_kept:.4f}")
        cells += [f"{worst.error_nats:.1e}", f"{worst.worst_error_nats:.1e}"]
    else:
        cells += ["", "0", "0"]
    if store is None:
        cells += ["", "", ""]
    else:
        few, many = milliseconds(store, 300), milliseconds(store, 2000)
        cells += [f"{few:.1f} ms", f"{few / 10 / STEP_SECONDS:.1f} %", f"{many:.1f} ms"]
    return "| " + " | ".join(cells) + " |"


@torch.inference_mode()
def unbiased(teacher: LocalModel, rows: list[Rendered], repeats: int = 200) -> list[str]:
    """The teacher's entropy from draws against its entropy, position by position."""
    ids = torch.tensor([rows[0].ids])
    mask = torch.tensor([rows[0].loss_mask], dtype=torch.bool)
    logits_NV = teacher.logits(ids, mask)[:32].double()
    log_p_NV = logits_NV.log_softmax(-1)
    generator, lines = torch.Generator().manual_seed(0), []
    exact_N = (log_p_NV.exp() * log_p_NV).sum(-1)
    second_N = (log_p_NV.exp() * log_p_NV**2).sum(-1)
    for num in (12, 50):
        found = []
        for _ in range(repeats):
            offsets_N = torch.rand(len(logits_NV), generator=generator, dtype=torch.float64)
            row = drawn(logits_NV, offsets_N, num)
            log_p_NK = log_p_NV.gather(-1, torch.from_numpy(row.ids_NK).clamp_min(0)).numpy()
            found.append((row.values_NK * log_p_NK).sum(-1) / num)
        values = np.stack(found)
        error_N = values.mean(0) - exact_N.numpy()
        deviation_N = values.std(0, ddof=1)
        z_N = np.abs(error_N) / np.maximum(deviation_N / repeats**0.5, 1e-12)
        independent_N = ((second_N - exact_N**2) / num).clamp_min(0).sqrt().numpy()
        lines.append(
            f"- {num} draws, {repeats} times at {len(z_N)} positions: the mean of log p over the "
            f"draws is off by {abs(error_N.mean()):.4f} nat on average over the positions, and by "
            f"more than three standard errors at {(z_N > 3).sum()} of them; its spread is "
            f"{deviation_N.sum() / independent_N.sum():.2f} of what independent draws would have."
        )
    return lines


if __name__ == "__main__":
    main()
