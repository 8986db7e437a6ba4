import pytest

from potstill.data.words import fold, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop: 3.5 km!", ["don", "t", "stop", "3", "5", "km"]),
        ("मेरी किताब कहाँ है?", ["मेरी", "किताब", "कहाँ", "है"]),
        ("എന്റെ പുസ്തകം എവിടെ?", ["എന്റെ", "പുസ്തകം", "എവിടെ"]),
        ("எங்கே புத்தகம்", ["எங்கே", "புத்தகம்"]),
        ("أين كتابي؟", ["أين", "كتابي"]),
        ("我的书", ["我", "的", "书"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("Straße ΣΑΣ", ["strasse", "σασ"]),
        ("", []),
        ("?!", []),
    ],
)
def test_words_keep_their_marks_in_every_script(text, expected):
    assert words(text) == expected


def test_both_spellings_of_a_malayalam_chillu_are_one():
    assert fold("ഓര്\u200dഡര്\u200d") == fold("ഓർഡർ")


def test_joiners_do_not_make_another_word():
    assert words("क्\u200dष") == words("क्ष")
