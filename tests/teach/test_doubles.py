"""Doubles among accepted rows are found in every script, and nothing is rejected by chance."""

import random
import tracemalloc

import pytest

from potstill.data.ngrams import jaccard, ngrams
from potstill.data.scratch import scratch
from potstill.data.words import fold
from potstill.tasks import get_task
from potstill.teach.doubles import duplicate_checks
from potstill.types import Message, Record

TEXTS = {
    "Latin": "The parcel that I ordered three weeks ago has not arrived in Cologne so far.",
    "Devanagari": "तीन सप्ताह पहले मँगाया गया पार्सल अब तक दिल्ली नहीं पहुँचा है, कृपया देखें।",
    "Malayalam": "മൂന്ന് ആഴ്ച മുമ്പ് ഓർഡർ ചെയ്ത പാഴ്സൽ ഇതുവരെ കൊച്ചിയിൽ എത്തിയിട്ടില്ല, ദയവായി നോക്കൂ.",
    "Han": "我三个星期以前订购的包裹到现在为止还没有送到上海的家里，请帮我查一下。如果已经丢失，"
    "请尽快退款，或者再寄一个新的包裹给我，谢谢。",
}


def row(id, prompt, answer):
    return Record(id=id, messages=(Message(role="user", content=prompt),), reference=answer)


@pytest.fixture
def doubles(tmp_path):
    with scratch(tmp_path) as database:

        def build(name, task="conversation", prompts=()):
            (check,) = duplicate_checks([name], database, get_task(task), prompts)
            return check

        yield build


def test_nothing_is_left_in_the_folder_even_by_a_kill(tmp_path):
    with scratch(tmp_path) as database:
        duplicate_checks(["no_duplicates", "no_near_duplicates"], database, get_task("qa"), ())
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (("Is it  here?", "yes, it is"), "duplicate"),
        (("IS IT HERE", "“Yes, it is.”"), "duplicate"),
        (("Is it here?", "No."), None),
        (("Is it there?", "Yes, it is."), None),
    ],
)
def test_the_same_answer_to_the_same_prompt_is_a_duplicate(doubles, other, expected):
    check = doubles("no_duplicates")
    assert check(row("a", "Is it here?", "Yes, it is.")) is None
    found = check(row("b", *other))
    assert (found and found.reason) == expected
    assert found is None or found.detail == "same as record a"


@pytest.mark.parametrize(
    ("one", "other"), [("3 - 2", "3 + 2"), ("3.5", "3 5"), ("3.5", "35"), ("क्या", "क्यों")]
)
def test_signs_digits_and_vowels_tell_rows_apart(doubles, one, other):
    check = doubles("no_duplicates")
    assert check(row("a", one, "?")) is None
    assert check(row("b", other, "?")) is None


@pytest.mark.parametrize("script", TEXTS)
def test_a_changed_word_is_a_near_duplicate_and_another_text_is_not(doubles, script):
    check = doubles("no_near_duplicates")
    text = TEXTS[script]
    assert check(row("a", text, text[:30])) is None
    found = check(row("b", text + "!!", text[:30]))
    assert found.reason == "near_duplicate"
    assert found.detail.endswith("similar to record a")
    assert check(row("c", text[::-1], "".join(sorted(text)))) is None


def test_another_answer_from_a_small_set_makes_another_row(doubles):
    check = doubles("no_near_duplicates", "nli")
    prompt = f"Premise: {TEXTS['Latin']} {TEXTS['Devanagari']} Hypothesis: It has"
    assert check(row("a", f"{prompt} come.", "contradiction")) is None
    assert check(row("b", f"{prompt} not come.", "entailment")) is None
    assert check(row("c", f"{prompt} come!", "Contradiction")).reason == "near_duplicate"


def test_what_all_prompts_share_does_not_make_them_alike(doubles):
    instruction = (
        "Read the message of the customer below and say with one word what it is about. Think of "
        "who will have to work on it: the warehouse, the accounts, the workshop or the shop. Where "
        "two of them fit, take the one that comes first in the list; where none does, say other. "
        "Neither greet nor explain, since a program reads the answer and not a person. Message: "
    )
    prompts = [row(f"p{n}", f"{instruction}{n * n * 7919 + 13:x} " * 2, None) for n in range(40)]
    first, second = (f"{instruction}{text[:24]}" for text in (TEXTS["Latin"], TEXTS["Latin"][::-1]))
    assert jaccard(ngrams(fold(first)), ngrams(fold(second))) > 0.85
    check = doubles("no_near_duplicates", prompts=prompts)
    assert check(row("a", first, "fine")) is None
    assert check(row("b", second, "fine")) is None


def test_every_pair_from_0_8_is_found_and_no_other(tmp_path):
    """Against all pairs compared one by one, on rows that grow out of each other."""
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijkmnop", k=draw.randint(3, 8))) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(20)]
    while len(texts) < 150:
        changed = draw.choice(texts).split()
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.choice(words)
        texts.append(" ".join(changed))
    grams, kept, expected = [], [], set()
    for number, text in enumerate(texts):
        own = ngrams(fold(f"{text}\nyes"))
        if any(jaccard(own, grams[other]) >= 0.8 for other in kept):
            expected.add(number)
        else:
            kept.append(number)
        grams.append(own)
    with scratch(tmp_path) as database:
        (check,) = duplicate_checks(["no_near_duplicates"], database, get_task("conversation"), ())
        found = {n for n, text in enumerate(texts) if check(row(str(n), text, "yes"))}
    assert found == expected
    assert 20 < len(expected) < 130


def test_memory_does_not_grow_with_the_rows(tmp_path):
    draw = random.Random(5)
    with scratch(tmp_path) as database:
        checks = duplicate_checks(
            ["no_duplicates", "no_near_duplicates"], database, get_task("conversation"), ()
        )

        def feed(start, number):
            for n in range(start, start + number):
                text = "".join(draw.choices("abcdefgh ", k=150))
                assert all(check(row(str(n), text, "yes")) is None for check in checks)

        feed(0, 50)
        tracemalloc.start()
        feed(50, 250)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 100_000
