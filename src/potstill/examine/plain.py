"""Cheap rivals for closed answers: the commonest answer, and TF-IDF with logistic regression.

A rival is a `ChatModel` like any other, so it is asked, marked and timed by the same code.
If a line of scikit-learn does as well as the student, the report has to say so.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.examine.parts import SLICE_FIELDS
from potstill.examine.run import evaluate
from potstill.protocols import Task
from potstill.rundir import content_hash
from potstill.tasks.words import words
from potstill.types import Evaluation, Record, Response, Sampling

log = logging.getLogger(__name__)

MAX_CLASSES = 64
"""Above it the answer of the most similar training prompt is taken: a regression over hundreds
of classes with a row or two each takes minutes and learns nothing more."""

MAX_FEATURES = 50_000
C = 10.0
"""Inverse strength of the penalty; fixed, since rivals are not tuned on the test set."""

Fields = Callable[[str], Mapping[str, Any] | None]
"""An answer to its fields, or None where it has not their form."""

Join = Callable[[Mapping[str, str]], str]
"""Fields back to an answer."""


class PlainModel:
    """A function from prompt to answer in the shape of a `ChatModel`."""

    max_in_flight = 1

    def __init__(self, name: str, answer: Callable[[str], str], fingerprint: str):
        self.name = name
        self.fingerprint = fingerprint
        self._answer = answer

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        text = self._answer(prompt_text(record))
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            text=text,
            finish_reason="stop",
            model=self.name,
        )

    async def close(self) -> None:
        """Has nothing to free."""


def prompt_text(record: Record) -> str:
    """What a plain classifier sees: everything but the system message."""
    return "\n".join(m.content for m in record.messages if m.role != "system")


def majority(answers: Sequence[str]) -> PlainModel:
    """Always the commonest answer; among equals the first in alphabetical order."""
    _need(answers)
    counts = Counter(answers)
    best = min(counts, key=lambda answer: (-counts[answer], answer))
    return PlainModel("majority", lambda _: best, content_hash("majority", best))


def tfidf(
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    fields: Fields | None = None,
    join: Join | None = None,
) -> PlainModel:
    """Logistic regression on TF-IDF of words and characters.

    Args:
        prompts: What was asked.
        answers: The class of each prompt.
        fields: For answers that consist of fields: one classifier is fitted to each field.
        join: Puts the fields' predictions together again.

    Raises:
        DataError: If there is nothing to learn from.
    """
    _need(answers)
    fingerprint = content_hash("tfidf", list(prompts), list(answers), fields is not None)
    if fields is None:
        return PlainModel("tfidf", _classifier(prompts, answers), fingerprint)
    if join is None:
        raise DataError("a rival for answers of several fields needs join as well as fields")
    read = [(prompt, fields(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    rows = [(prompt, values) for prompt, values in read if values is not None]
    _need(rows)
    columns = {name: [str(values[name]) for _, values in rows] for name in rows[0][1]}
    parts = _classifiers([prompt for prompt, _ in rows], columns)
    return PlainModel(
        "tfidf, one classifier a field", lambda prompt: join(parts(prompt)), fingerprint
    )


def _need(rows: Sequence[Any]) -> None:
    if not rows:
        raise DataError("a plain rival needs at least one prompt whose answer can be read")


def _classifier(prompts: Sequence[str], answers: Sequence[str]) -> Callable[[str], str]:
    parts = _classifiers(prompts, {"": answers})
    return lambda prompt: parts(prompt)[""]


def _classifiers(
    prompts: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> Callable[[str], dict[str, str]]:
    """One classifier for each column, all on the same features: a prompt to its classes."""
    known = {name: classes[0] for name, classes in columns.items() if len(set(classes)) == 1}
    if len(known) == len(columns):
        return lambda _: dict(known)
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    # Our words, since scikit-learn's token pattern breaks Hindi at its vowel signs.
    by_word = TfidfVectorizer(
        tokenizer=words,
        token_pattern=None,
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=MAX_FEATURES,
    )
    by_character = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=MAX_FEATURES
    )
    features = make_union(by_word, by_character)
    matrix = features.fit_transform(list(prompts))
    learners = {
        name: _learner(matrix, classes) for name, classes in columns.items() if name not in known
    }

    def answer(prompt: str) -> dict[str, str]:
        row = features.transform([prompt])
        found = {name: str(learner.predict(row)[0]) for name, learner in learners.items()}
        return {name: (known | found)[name] for name in columns}

    return answer


def _learner(matrix: Any, classes: Sequence[str]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    if len(set(classes)) <= MAX_CLASSES:
        learner = LogisticRegression(C=C, max_iter=1000)
    else:
        learner = KNeighborsClassifier(n_neighbors=1, metric="cosine")
    with warnings.catch_warnings():
        # That there are many classes for so few rows is known: it is why MAX_CLASSES is there.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return learner.fit(matrix, list(classes))


async def plain_rivals(
    *,
    gold: Sequence[Record],
    taught: Sequence[tuple[Record, str]],
    test: Sequence[Record],
    task: Task,
    samples_path: Callable[[str], Path],
    metrics: Sequence[str] | None = None,
    fields: Fields | None = None,
    join: Join | None = None,
    group_by: str | None = None,
    slices: Sequence[str] = SLICE_FIELDS,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """Rows `majority`, `tfidf_gold` and `tfidf_teacher` on the test set.

    Args:
        gold: Training records; those without a reference are left out. Without any, only the
            teacher's answers are learnt from.
        taught: Training records with the teacher's accepted answer.
        samples_path: Role -> file of its answers, as `RunDir.samples`.
        fields: As in `tfidf`.
        group_by, slices: As in `evaluate`.

    Raises:
        DataError: If neither gold nor taught answers can be read.
    """
    known = _classes(((r, r.reference) for r in gold if r.reference is not None), task)
    said = _classes(taught, task)
    _need(known + said)
    rivals = {"majority": majority([answer for _, answer in known or said])}
    for role, rows in (("tfidf_gold", known), ("tfidf_teacher", said)):
        if rows:
            prompts, answers = zip(*rows, strict=True)
            rivals[role] = tfidf(prompts, answers, fields=fields, join=join)
        else:
            log.info("%s is left out: no answer to learn from", role)
    return {
        role: await evaluate(
            rival,
            test,
            task,
            role=role,
            metrics=metrics,
            sampling=Sampling(),
            out_samples=samples_path(role),
            format="plain",
            fingerprint=rival.fingerprint,
            group_by=group_by,
            slices=slices,
            seed=seed,
        )
        for role, rival in rivals.items()
    }


def _classes(pairs: Any, task: Task) -> list[tuple[str, str]]:
    """(prompt, canonical answer) of each record and turn whose answer can be read."""
    found = []
    for record, text in pairs:
        prompt = task.turns(record)[-1]
        answer = task.parse(text, prompt)
        if answer is not None:
            found.append((prompt_text(prompt), answer))
    return found
