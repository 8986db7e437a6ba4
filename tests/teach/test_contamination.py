"""No run of words of a test set reaches the student, by the prompt or by the teacher's answer."""

import pytest

from potstill.data.scratch import scratch
from potstill.teach.contamination import NotContaminated
from potstill.types import Message, Record

QUESTION = "In which year did the harbour of the old town of Visby freeze over for the last time?"
ANSWER = "The harbour froze for the last time in the winter after the great storm of autumn."
HINDI = "पुराने शहर के बंदरगाह का पानी आखिरी बार किस साल की सर्दी में पूरी तरह जम गया था?"
MALAYALAM = "പഴയ നഗരത്തിലെ തുറമുഖം അവസാനമായി ഏത് വർഷം ആണ് പൂർണ്ണമായി തണുത്തുറഞ്ഞു പോയത് എന്ന് പറയാമോ?"
CHINESE = "老城的港口最后一次完全结冰是在哪一年的冬天？"


def row(id, prompt, answer=None, *, system="", **metadata):
    messages = [Message(role="user", content=prompt)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    return Record(id=id, messages=tuple(messages), reference=answer, metadata=metadata)


TEST = [row("t0", QUESTION, ANSWER), row("t1", "Short one?", "42")]


@pytest.fixture
def check_of(tmp_path):
    with scratch(tmp_path) as database:
        yield lambda test=TEST, prompts=(): NotContaminated(database, test, prompts)


def test_a_test_question_inside_a_prompt_is_found(check_of):
    check = check_of()
    prompt = f"Here is a riddle my uncle told: {QUESTION.upper()} Nobody knew."
    found = check(row("a", prompt, "I do not know."))
    assert (found.record_id, found.reason) == ("a", "contaminated")
    assert found.detail.endswith("in the prompt stands in the prompt of test row t0")
    assert '"in which year did the harbour of the' in found.detail


def test_a_test_answer_recited_by_the_teacher_is_found(check_of):
    found = check_of()(row("a", "Tell me a story.", f"Once upon a time... {ANSWER} The end."))
    assert found.detail.endswith("in the answer stands in the answer of test row t0")


def test_a_teacher_turn_in_the_middle_of_a_conversation_is_looked_at(check_of):
    turns = [("user", "Hello"), ("assistant", QUESTION), ("user", "Right.")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    assert check_of()(Record(id="a", messages=messages, reference="Bye.")) is not None


@pytest.mark.parametrize("text", [HINDI, MALAYALAM, CHINESE])
def test_every_script_is_read_in_words(check_of, text):
    check = check_of([row("t", text, "?")])
    assert check(row("a", f"… {text.rstrip('?？')} …", "?")).reason == "contaminated"
    assert check(row("b", text[: len(text) // 4], "?")) is None


def test_points_and_case_do_not_hide_a_run_of_words(check_of):
    text = QUESTION.replace(" ", ", ").lower().replace("?", "")
    assert check_of()(row("a", text, "")) is not None


def test_a_run_of_fewer_words_is_a_coincidence(check_of):
    check = check_of()
    assert check.n == 13
    few = " ".join(QUESTION.split()[:12])
    assert check(row("a", few + " nobody knows", "42")) is None


@pytest.mark.parametrize(("num_words", "n"), [(8, 8), (10, 10), (30, 13)])
def test_n_is_the_length_of_short_test_texts_within_8_and_13(check_of, num_words, n):
    test = [row(f"t{i}", " ".join(f"w{i}x{j}" for j in range(num_words))) for i in range(30)]
    assert check_of(test).n == n


def test_an_instruction_that_many_rows_share_is_no_leak(check_of):
    ask = "Read the passage below with care and answer the question in one short sentence: "
    test = [row(f"t{i}", f"{ask}{i}", "yes") for i in range(6)]
    prompts = [row(f"p{i}", f"{ask}{i + 100}") for i in range(60)]
    check = check_of(test, prompts)
    assert check(row("a", f"{ask}what?", "no")) is None


def test_an_instruction_is_told_from_a_leak_with_one_test_row_too(check_of):
    ask = "Read the passage below with care and answer the question in one short sentence: "
    prompts = [row(f"p{i}", f"{ask}{i}") for i in range(10)] + [row("leaked", f"{ask}{QUESTION}")]
    check = check_of([row("t", f"{ask}{QUESTION}")], prompts)
    assert check(prompts[0]) is None
    assert check(prompts[-1]) is not None


def test_the_system_prompt_is_not_compared(check_of):
    system = (
        "You are a helpful clerk of the harbour office who answers in a single polite sentence."
    )
    check = check_of([row("t", QUESTION, ANSWER, system=system)])
    assert check(row("a", "Hello?", "Hello.", system=system)) is None


def test_all_accepted_answers_of_a_test_row_are_protected(check_of):
    check = check_of([row("t", "When?", "1903", answers=["1903", ANSWER])])
    assert check(row("a", "Say something.", ANSWER)).detail.endswith("the answer of test row t")


def test_it_says_how_many_test_rows_it_could_compare(check_of):
    assert check_of().facts() == {"n": 13, "num_test_rows": 2, "num_indexed_rows": 1}


def test_without_a_test_set_nothing_is_contaminated(tmp_path):
    with scratch(tmp_path) as database:
        check = NotContaminated(database, [], [])
        assert check(row("a", QUESTION, ANSWER)) is None


@pytest.mark.parametrize("is_learned", [True, False])
def test_reasoning_is_looked_at_where_it_is_learned_beside_the_answer(tmp_path, is_learned):
    with scratch(tmp_path) as database:
        check = NotContaminated(database, TEST, (), with_reasoning=is_learned)
        found = check(row("a", "A riddle?", "No.", reasoning=f"They ask: {QUESTION}"))
    assert bool(found) is is_learned
    assert found is None or "in the reasoning" in found.detail
