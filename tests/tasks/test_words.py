import pytest

from potstill.tasks.facts import agrees
from potstill.tasks.translation import chrf
from potstill.tasks.words import normal_answer, rouge_l, rouge_n, token_f1

SCRIPTS = {
    "Latin": "The parcel arrives on Monday, doesn't it?",
    "Devanagari": "मेरा पार्सल सोमवार को पहुँचेगा।",
    "Malayalam": "എന്റെ പാഴ്സൽ തിങ്കളാഴ്ച എത്തും.",
    "Tamil": "என் பார்சல் திங்கட்கிழமை வரும்.",
    "Arabic": "ستصل الطرد يوم الاثنين.",
    "Han": "我的包裹星期一到。",
    "Thai": "พัสดุจะมาถึงวันจันทร์",
    "Cyrillic": "Посылка придёт в понедельник.",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_agrees_fully_with_itself_in_every_script(script):
    text = SCRIPTS[script]
    assert token_f1(text, text) == 1.0
    assert rouge_l(text, text) == 1.0
    assert rouge_n(text, text, 1) == rouge_n(text, text, 2) == 1.0
    assert chrf(text, [text]) == pytest.approx(100.0)
    assert agrees(text, [text])


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_scripts_share_no_words(script):
    other = SCRIPTS["Han" if script != "Han" else "Latin"]
    assert rouge_l(SCRIPTS[script], other) == rouge_n(SCRIPTS[script], other, 1) == 0.0


@pytest.mark.slow
def test_rouge_agrees_with_the_usual_implementation_on_english():
    from rouge_score.rouge_scorer import RougeScorer

    a = "the quick brown fox jumped over the lazy dog in 2024, didn't it"
    b = "the lazy brown dog didn't jump over the 2024 fox"
    usual = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(b, a)
    assert rouge_n(a, b, 1) == pytest.approx(usual["rouge1"].fmeasure)
    assert rouge_n(a, b, 2) == pytest.approx(usual["rouge2"].fmeasure)
    assert rouge_l(a, b) == pytest.approx(usual["rougeL"].fmeasure)


def test_nothing_agrees_with_nothing_only_as_an_answer():
    assert token_f1("", "") == 1.0
    assert token_f1("a cat", "") == 0.0
    assert rouge_l("", "x") == rouge_l("", "") == 0.0


def test_normal_answers_lose_articles_and_marks_but_no_vowel_signs():
    assert normal_answer("The  Eiffel-Tower!") == "eiffel tower"
    assert normal_answer("कि") != normal_answer("का")
