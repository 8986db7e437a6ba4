import pytest

from potstill.data.load import load_dataset
from potstill.errors import DataError
from potstill.tasks.summarization import summarization
from potstill.tasks.translation import language, translation


def test_a_summary_is_right_by_the_best_of_its_references():
    (row,) = load_dataset(
        [{"document": "Long.", "summary": "A short text about cats.",
          "references": ["Something else entirely here.", "Dogs are in this one."]}]
    )  # fmt: skip
    assert summarization.correct("A short text about cats.", row) == 1.0
    assert summarization.correct("Dogs are in this one", row) == 1.0
    assert summarization.correct("Nothing of the sort", row) == 0.0
    assert summarization.correct(None, row) == 0.0
    assert summarization.parse(" A text. ", row) == "A text."


def test_a_summary_must_keep_the_numbers():
    (row,) = load_dataset([{"document": "Long.", "summary": "Sales rose to 42 million."}])
    assert summarization.correct("To 42 million sales climbed.", row) == 1.0
    assert summarization.correct("Sales rose to 43 million.", row) == 0.0


def test_a_bare_document_gets_an_instruction():
    (row,) = load_dataset([{"document": "लंबा पाठ।", "summary": "छोटा।"}])
    content = summarization.turns(row)[0].messages[0].content
    assert content == "Summarise the text in a few sentences.\n\nText: लंबा पाठ।"


def test_a_bare_text_is_translated_into_the_language_of_its_pair():
    (row,) = load_dataset([{"translation": {"en": "Hello", "ml": "നമസ്കാരം"}}])
    content = translation.turns(row)[0].messages[0].content
    assert content == "Translate the text into Malayalam.\n\nText: Hello"
    (row,) = load_dataset([{"source": "Hello", "target": "नमस्ते", "target_lang": "Hindi"}])
    assert "into Hindi" in translation.turns(row)[0].messages[0].content


def test_a_bare_text_without_a_language_is_an_error():
    (row,) = load_dataset([{"source": "Hello", "target": "नमस्ते"}])
    with pytest.raises(DataError, match="target_lang"):
        translation.turns(row)


def test_a_translation_is_right_from_a_chrf_of_fifty():
    (row,) = load_dataset([{"source": "x", "target": "मेरा पार्सल सोमवार को पहुँचेगा।"}])
    assert translation.correct("मेरा पार्सल सोमवार को पहुँचेगा", row) == 1.0
    assert translation.correct("मेरी किताब", row) == 0.0
    (row,) = load_dataset([{"source": "x"}])
    assert translation.correct("y", row) is None


def test_language_codes_have_names():
    assert language("hi") == "Hindi"
    assert language("zh-CN") == "Chinese"
    assert language("Klingon") == "Klingon"
