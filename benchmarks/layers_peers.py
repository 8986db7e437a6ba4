"""Terms between the layers beside TextBrewer's own code: values and gradients.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy
    ENV/bin/pip install --no-deps textbrewer==0.2.1.post1
    python benchmarks/layers_peers.py --peer ENV/bin/python

TextBrewer runs in an environment of its own; tensors go there and back as .npz files. It has no
relation loss, but a cross-entropy of attention logits: given the relations' logits, the
cross-entropy less the teacher's entropy is MiniLMv2's divergence. It reads logits below -0.001 as
masked, so they are handed over shifted by a constant, which no softmax sees.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "results" / "intermediate.md"
B, L, H, HEADS = 3, 17, 24, 4
STUDENT, TEACHER = 32, 48
SHIFT, MASKED = 1e3, -1e9

PEER = """
import importlib.util, sys, types
import numpy as np, torch

# The package's front door wants tensorboard, its losses do not: they are imported alone.
spec = importlib.util.find_spec("textbrewer")
package = types.ModuleType("textbrewer")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["textbrewer"] = package
from textbrewer import losses

given = {name: torch.from_numpy(value) for name, value in np.load(sys.argv[1]).items()}
found = {}

def keep(name, loss, leaf):
    found[name] = loss.detach().numpy()
    found[name + "_gradient"] = torch.autograd.grad(loss, leaf)[0].numpy()

hidden, mask = given["student_hidden"].requires_grad_(), given["mask"]
keep("hidden_mse", losses.hid_mse_loss(hidden, given["teacher_hidden"], mask), hidden)
keep("hidden_cosine", losses.cos_loss(hidden, given["teacher_hidden"], mask), hidden)
for name in ("relations", "causal_relations"):
    states, teacher = given["student_states"].requires_grad_(), given["teacher_" + name]
    heads = int(given["heads"])
    x = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    logits = x @ x.transpose(2, 3) / (x.shape[-1] ** 0.5) + given["shift_" + name]
    entropy = losses.att_ce_loss(teacher, teacher)
    keep(name, losses.att_ce_loss(logits, teacher) - entropy, states)
np.savez(sys.argv[2], **found)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="a python that has textbrewer")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = compare(options.peer)
    text = page(found)
    options.out.write_text(text, encoding="utf-8")
    print(text)


def compare(peer: str) -> dict[str, tuple[float, float, float]]:
    """Term -> our value, largest difference of the value, largest difference of the gradient."""
    given = draw()
    with tempfile.TemporaryDirectory() as folder:
        sent, back = Path(folder, "sent.npz"), Path(folder, "back.npz")
        np.savez(sent, **{name: value.numpy() for name, value in given.items()})
        done = subprocess.run([peer, "-c", PEER, str(sent), str(back)], capture_output=True)
        if done.returncode:
            sys.exit(done.stderr.decode())
        theirs = {name: torch.from_numpy(value) for name, value in np.load(back).items()}
    rows = {}
    for name, (value, gradient) in ours(given).items():
        rows[name] = (
            value.item(),
            (value - theirs[name]).abs().item(),
            (gradient - theirs[f"{name}_gradient"]).abs().max().item(),
        )
    return rows


def draw() -> dict[str, torch.Tensor]:
    """Inputs of both sides, float64; rows of three lengths."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = {
        "student_hidden": normal(B, L, H),
        "teacher_hidden": normal(B, L, H),
        "student_states": normal(B, L, STUDENT),
        "heads": torch.tensor(HEADS),
    }
    lengths = torch.tensor([L, L - 4, L - 9])
    given["mask"] = (torch.arange(L) < lengths[:, None]).double()
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    given["teacher_states"] = normal(B, L, TEACHER)
    x = given["teacher_states"].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    logits = x @ x.transpose(2, 3) / math.sqrt(x.shape[-1])
    for name, masked in (("relations", False), ("causal_relations", True)):
        shift = torch.full((L, L), SHIFT, dtype=torch.float64)
        given[f"shift_{name}"] = shift.masked_fill(later, MASKED) if masked else shift
        given[f"teacher_{name}"] = logits + given[f"shift_{name}"]
    return given


def ours(given: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same means from this project's functions."""
    from potstill.train.intermediate import hidden_cosine, hidden_mse, relation_kl

    found = {}
    is_token = given["mask"].bool()
    for name, distance in (("hidden_mse", hidden_mse), ("hidden_cosine", hidden_cosine)):
        leaf = given["student_hidden"].clone().requires_grad_()
        loss = distance(leaf[is_token], given["teacher_hidden"][is_token]).mean()
        found[name] = (loss.detach(), torch.autograd.grad(loss, leaf)[0])
    for name, causal in (("relations", False), ("causal_relations", True)):
        leaf = given["student_states"].clone().requires_grad_()
        rows = zip(leaf, given["teacher_states"], strict=True)
        kl = [relation_kl(mine, their, heads=HEADS, causal=causal) for mine, their in rows]
        loss = torch.stack(kl).mean()
        found[name] = (loss.detach(), torch.autograd.grad(loss, leaf)[0])
    return found


NAMES = {
    "hidden_mse": ("`hidden: mse`, rows of three lengths", "`hid_mse_loss` with its mask"),
    "hidden_cosine": ("`hidden: cosine`, rows of three lengths", "`cos_loss` with its mask"),
    "relations": ("relations of all tokens (MiniLMv2's encoders)", "`att_ce_loss` less entropy"),
    "causal_relations": ("relations to earlier tokens (`attention`)", "the same, later masked"),
}


def page(found: dict[str, tuple[float, float, float]]) -> str:
    lines = [
        "# Are the terms between the layers what others compute?",
        "",
        f"{datetime.date.today().isoformat()}, torch {torch.__version__.partition('+')[0]}, CPU; "
        f"TextBrewer 0.2.1.post1 in an environment of its own. Its code works in float64, ours in "
        f"float32 on the same numbers ({B} rows of up to {L} tokens, hidden {H}; queries {STUDENT} "
        f"and {TEACHER} wide in {HEADS} relation heads).",
        "",
        "| this project | TextBrewer | value | difference | largest difference of a gradient |",
        "|---|---|---|---|---|",
    ]
    for name, (value, off, off_gradient) in found.items():
        mine, theirs = NAMES[name]
        lines.append(f"| {mine} | {theirs} | {value:.6f} | {off:.1e} | {off_gradient:.1e} |")
    lines += [
        "",
        "TextBrewer compares attention logits and has no relation loss: it was given the "
        "relations' logits, and the entropy of the teacher's was taken off its cross-entropy. "
        "Its mask for padding leaves padded tokens inside the softmax, so relations are compared "
        "on rows without padding. Here padding is cut off before the softmax (the tests show it). "
        "torchdistill 1.1.5 has no comparable term for sequences: its `MSELoss` and `KLDivLoss` "
        "are torch's own.",
        "",
        "What these terms do for a student is not measured on this page.",
        "",
        "```",
        "python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy",
        "ENV/bin/pip install --no-deps textbrewer==0.2.1.post1",
        "python benchmarks/layers_peers.py --peer ENV/bin/python",
        "```",
    ]
    return "\n".join(line if "|" in line else textwrap.fill(line, 110) for line in lines) + "\n"


if __name__ == "__main__":
    main()
