"""A whole report made of invented answers: seven models on 400 support questions."""

import random

from potstill.examine.metrics import accuracy, macro_f1
from potstill.examine.report import build_report
from potstill.examine.run import reduce_samples
from potstill.types import Estimate, Message, Report, Sample

CLASSES = ("refund", "replace", "cancel", "track", "invoice")
SHARES = {
    "teacher": 0.86,
    "distilled": 0.83,
    "gguf:q8_0": 0.828,
    "text": 0.79,
    "gold_few": 0.55,
    "untouched": 0.21,
    "tfidf_gold": 0.71,
}
SECONDS = {
    "teacher": 1.31,
    "distilled": 0.21,
    "gguf:q8_0": 0.064,
    "text": 0.21,
    "gold_few": 0.21,
    "untouched": 0.22,
    "tfidf_gold": 0.0011,
}
DISK = {
    "teacher": None,
    "distilled": 269_060_552,
    "gguf:q8_0": 144_811_456,
    "text": 269_060_552,
    "gold_few": 269_060_552,
    "untouched": 269_060_552,
    "tfidf_gold": 1_204_000,
}
NASTY = '<script>alert("x")</script> [red]not markup[/red] \x1b[31m'


def answers(role: str, n: int = 400, seed: int = 0, shares: dict = SHARES) -> list[Sample]:
    """Answers of one model; the hard questions are the same for all models."""
    rng = random.Random(seed)
    samples = []
    for i in range(n):
        target = CLASSES[rng.randrange(len(CLASSES))]
        difficulty = rng.random() * 0.7 + random.Random(f"{role}{i}{seed}").random() * 0.3
        right = difficulty < shares[role]
        said = target if right else CLASSES[(CLASSES.index(target) + 1 + i % 3) % len(CLASSES)]
        cut = not right and i % 17 == 0
        prediction = None if cut else said
        text = f"I think this is about: {said}" + (NASTY if i % 23 == 0 else "")
        samples.append(
            Sample(
                record_id=f"r{i:04}",
                prompt=(
                    Message(role="system", content="Name the topic of the message."),
                    Message(
                        role="user",
                        content=f"Hello, order {1000 + i} of the jade desk fan came "
                        f"{'broken ' * (i % 9)}a fortnight ago. What now? "
                        + (NASTY if i % 50 == 0 else ""),
                    ),
                ),
                references=(target,),
                target=target,
                text=text,
                prediction=prediction,
                correct=float(right),
                finish_reason="length" if cut else "stop",
                num_new_tokens=12,
                seconds=SECONDS.get(role, 0.1),
                metadata={"source": "web" if i % 3 else "phone"},
            )
        )
    return samples


def curve() -> list[dict]:
    """Rows as training writes them."""
    rows = []
    for step in range(0, 400, 10):
        row = {"step": step, "train/loss_nats": 1.6 / (1 + step / 60) + 0.1 + 0.04 * (step % 7)}
        if step % 50 == 0:
            row["validation/loss_nats"] = 1.5 / (1 + step / 70) + 0.22
        rows.append(row)
    return rows


def fake_report(n: int = 400, shares: dict = SHARES, gates: tuple[str, ...] = ()) -> Report:
    """The report of a run with these shares of right answers."""
    samples = {role: answers(role, n, shares=shares) for role in shares}
    evaluations = {}
    for role, rows in samples.items():
        found = reduce_samples(
            rows,
            role=role,
            metrics=[accuracy, macro_f1],
            closed=True,
            id="big-model-8b" if role == "teacher" else f"smol-135m ({role})",
            format="endpoint" if role == "teacher" else "gguf" if ":" in role else "huggingface",
            num_parameters=8_030_000_000 if role == "teacher" else 134_515_008,
            disk_bytes=DISK.get(role),
            decoding={"temperature": 0.0, "max_new_tokens": 32},
            setting={"threads": 2, "dtype": "float32"},
        )
        seconds = SECONDS.get(role, 0.1)
        speed = {
            "latency": Estimate(
                value=seconds,
                low=seconds * 0.94,
                high=seconds * 1.08,
                n=30,
                unit="seconds",
                higher_is_better=False,
                note="includes_network: true" if role == "teacher" else "",
            ),
            "memory": Estimate(
                value=None if role == "teacher" else 6.1e8,
                n=1,
                unit="bytes",
                higher_is_better=False,
                note="not on this machine" if role == "teacher" else "",
            ),
        }
        evaluations[role] = found.model_copy(update={"metrics": {**found.metrics, **speed}})
    return build_report(
        run="faq-student",
        task={
            "name": "classification",
            "split": "test",
            "n": n,
            "dataset": "9f2c41",
            "prompt": "a1",
        },
        evaluations=evaluations,
        samples=samples,
        primary_metric="accuracy",
        margin=0.02,
        seed=0,
        closed=True,
        gates=gates,
        data={
            "requested": 1800,
            "answered": 1786,
            "accepted": 1674,
            "rejected": {"length": 61, "disagrees": 33, "refusal": 18},
            "spending": {"lines": ["Tokens paid: 5 for <i>all</i>"]},
            "quality": {
                "labels": {"yes": 1200, "<b>no</b>": 474},
                "label_entropy_bits": 0.8596,
                "effective_labels": 1.814,
                "num_sampled": 1000,
                "distinct_2": 0.31,
                "contamination": {"n": 8, "num_test_rows": 250, "num_indexed_rows": 240},
            },
        },
        training={"num_steps": 390, "seconds": 279.0, "num_records": 1674},
        environment={"commit": "0a12d18", "python": "3.11.9", "hardware": "2 cores"},
    )
