"""Numbers equal those of the libraries that define them, read from the same files."""

import json

import numpy as np
import pytest
from examine.fake_models import sample

from potstill.examine.metrics import accuracy, estimate, get_metric, macro_f1
from potstill.examine.parts import class_estimates
from potstill.examine.resample import mcnemar

WORDS = "The parcel from Leeds didn't arrive, so we send 2 new lamps (blue) on March 5th.".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Answers and references, one a line, as other tools read them."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(4)
    said, wanted = [], []
    for i in range(150):
        reference = list(rng.permutation(WORDS)[: rng.integers(4, len(WORDS))])
        kept = [word for word in reference if rng.random() > 0.25] or ["no"]
        said.append(" ".join(kept if i % 3 else [*kept[::-1], "lamps"]))
        wanted.append(" ".join(reference))
    (folder / "said.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    (folder / "wanted.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lines(files):
    return [(files / name).read_text(encoding="utf-8").splitlines() for name in
            ("said.txt", "wanted.txt")]  # fmt: skip


@pytest.fixture(scope="module")
def texts(lines):
    rows = zip(*lines, strict=True)
    return [sample(i, text=a, prediction=a, references=(b,)) for i, (a, b) in enumerate(rows)]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_scores_are_sacrebleus(name, texts, lines):
    import sacrebleu

    said, wanted = lines
    score = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[name]
    metric = get_metric(name)
    assert estimate(metric, texts, seed=0).value == pytest.approx(score(said, [wanted]).score)
    # What resamples are computed with is the same formula, for many corpora at once.
    sums = metric.rows(texts).sum(axis=0)
    assert metric.value(np.stack([sums, 2 * sums]))[0] == pytest.approx(metric.value(sums))


def test_several_references_are_taken_as_sacrebleu_takes_them(lines):
    import sacrebleu

    said, wanted = lines
    others = [" ".join(text.split()[1:]) + " today" for text in wanted]
    rows = [
        sample(i, text=a, references=(b, c))
        for i, (a, b, c) in enumerate(zip(said, wanted, others, strict=True))
    ]
    found = estimate(get_metric("bleu"), rows, seed=0)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(said, [wanted, others]).score)
    assert "nrefs:2" in found.signature


@pytest.mark.parametrize(
    ("name", "kind"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_rouge_is_rouge_scores_on_english(name, kind, texts, lines):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind])  # its own tokenizer, which is right for English
    theirs = [scorer.score(b, a)[kind].fmeasure for a, b in zip(*lines, strict=True)]
    assert estimate(get_metric(name), texts, seed=0).value == pytest.approx(np.mean(theirs))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Labels in a file of JSON lines; some answers could not be read, one label is never right."""
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    rng = np.random.default_rng(5)
    names = np.array(["refund", "track", "cancel"])
    with path.open("w", encoding="utf-8") as file:
        for i in range(200):
            target = str(rng.choice(names, p=[0.6, 0.3, 0.1]))
            said = target if rng.random() < 0.7 else str(rng.choice([*names, "other", ""]))
            row = {"id": i, "target": target, "said": said or None}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def labels(labelled):
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    samples = [
        sample(r["id"], prediction=r["said"], target=r["target"], references=(r["target"],),
               correct=float(r["said"] == r["target"]))
        for r in rows
    ]  # fmt: skip
    return samples, [r["target"] for r in rows], [r["said"] or "unreadable" for r in rows]


def test_accuracy_and_f1_are_scikit_learns(labels):
    from sklearn.metrics import accuracy_score, f1_score

    samples, wanted, said = labels
    assert estimate(accuracy, samples, seed=0).value == pytest.approx(accuracy_score(wanted, said))
    theirs = f1_score(wanted, said, labels=sorted(set(wanted)), average="macro")
    assert estimate(macro_f1, samples, seed=0).value == pytest.approx(theirs)


def test_classes_are_scikit_learns(labels):
    from sklearn.metrics import classification_report

    samples, wanted, said = labels
    theirs = classification_report(wanted, said, output_dict=True, zero_division=0.0)
    found = class_estimates(samples, seed=0)
    assert set(found) == {"refund", "track", "cancel"}
    for name, row in found.items():
        assert row["precision"].value == pytest.approx(theirs[name]["precision"])
        assert row["recall"].value == pytest.approx(theirs[name]["recall"])
        assert row["f1"].value == pytest.approx(theirs[name]["f1-score"])
        assert row["recall"].n == theirs[name]["support"]
        assert row["f1"].low < row["f1"].value < row["f1"].high
        assert all(one.method and one.signature for one in row.values())


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 7), (9, 2), (31, 31), (5000, 4700)])
def test_mcnemar_is_scipys_binomial_test(b, c):
    from scipy.stats import binom

    tail = binom.cdf(min(b, c), b + c, 0.5)
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_equal_numbers_are_math_verifys():
    from math_verify import parse, verify

    pairs = [("1/2", "0.5"), (r"\frac{2}{4}", "0.5"), ("x+1", "1+x"), ("3", "4"), ("2^3", "8")]
    rows = [
        sample(i, text=f"So #### {a}", references=(f"#### {b}",)) for i, (a, b) in enumerate(pairs)
    ]
    ours = get_metric("numeric_equality").rows(rows)[:, 0]
    theirs = [verify(parse(f"${b}$"), parse(f"${a}$")) for a, b in pairs]
    assert ours.tolist() == [float(same) for same in theirs]
