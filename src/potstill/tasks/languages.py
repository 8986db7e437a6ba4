"""Which language a text is in, as far as its letters and its commonest words tell.

This is no language detector: it answers "is this plainly not the language that was asked for?",
and says nothing where it does not know.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from potstill.data.words import words
from potstill.tasks.translation import LANGUAGES
from potstill.types import Record

_LATIN_LANGUAGES = (
    "czech danish dutch english finnish french german indonesian italian polish portuguese "
    "romanian spanish swahili swedish turkish vietnamese"
).split()
_SCRIPTS = {
    "arabic": "ARABIC",
    "assamese": "BENGALI",
    "bengali": "BENGALI",
    "bulgarian": "CYRILLIC",
    "chinese": "CJK",
    "greek": "GREEK",
    "gujarati": "GUJARATI",
    "hebrew": "HEBREW",
    "hindi": "DEVANAGARI",
    "japanese": "CJK",
    "kannada": "KANNADA",
    "korean": "HANGUL",
    "malayalam": "MALAYALAM",
    "marathi": "DEVANAGARI",
    "nepali": "DEVANAGARI",
    "odia": "ORIYA",
    "persian": "ARABIC",
    "punjabi": "GURMUKHI",
    "russian": "CYRILLIC",
    "sanskrit": "DEVANAGARI",
    "sinhala": "SINHALA",
    "tamil": "TAMIL",
    "telugu": "TELUGU",
    "thai": "THAI",
    "ukrainian": "CYRILLIC",
    "urdu": "ARABIC",
    **dict.fromkeys(_LATIN_LANGUAGES, "LATIN"),
}
_COMMON_WORDS = {
    language: frozenset(text.split())
    for language, text in {
        "arabic": "في من على إلى أن هذا هذه التي الذي كان ما لا عن مع",
        "bulgarian": "и в не на че с за да е се са от това по ще",
        "chinese": "的 了 是 在 我 不 们 這 这 和 有 他 她",
        "danish": "og at det er en den til på af med for ikke der jeg har",
        "dutch": "de het een en van is dat niet op te zijn voor met ik aan",
        "english": "the of and to is that it was for with on are this you be have not he she",
        "finnish": "ja on ei että se hän oli mutta ovat kun niin minä joka",
        "french": "le la les des et est une dans que pas pour qui sur au avec ce il elle",
        "german": "der die das und ist nicht ein eine den dem zu mit von auf für sich ich",
        "hindi": "है हैं का की के में से और को ने पर नहीं था थी थे यह",
        "indonesian": "yang dan di ini itu dengan untuk tidak dari dalam akan pada adalah saya",
        "italian": "il la di che è un una per non del della sono con le gli si ho",
        "japanese": "の は を に が で と も た て し い",
        "marathi": "आहे आहेत आणि मध्ये नाही होते हे तो ती या होता होती",
        "nepali": "छ छन् र को मा लाई हुन्छ थियो यो पनि गर्न",
        "persian": "است که در به را از این با آن های می و برای",
        "polish": "i w nie na się że jest to do z ale jak po dla",
        "portuguese": "o a os que não uma um para com do da em é são se mais por",
        "russian": "и в не на что с по это как он она они был все так но",
        "spanish": "el la los las que y es un una en no por con del para se está",
        "swedish": "och att det är en som på för med inte av den jag har ett",
        "turkish": "ve bir bu için ile de da değil çok ne var olarak gibi",
        "ukrainian": "і в не на що з та це як він вона вони був але від до",
        "urdu": "ہے ہیں کا کی کے میں سے اور کو نہیں تھا تھی یہ پر",
    }.items()
}
_TARGET_KEYS = ("target_language", "target_lang", "tgt_lang", "target", "language", "lang")
_INTO = re.compile(r"\b(?:into|to|in)\s+([a-z]+)\b", re.I)
_SENSE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}
_FEWEST_HITS = 3
"""Common words of another language that a text must have before it is called that language."""


def script_of(text: str) -> str | None:
    """The script that most letters of a text are in, such as LATIN; None without letters."""
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha() or unicodedata.category(character) in ("Mn", "Mc"):
            name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
            counts[_SENSE.get(name, name)] += 1
    return counts.most_common(1)[0][0] if counts else None


def language_of(text: str) -> str:
    """The language that the commonest words of a text belong to; empty where that is not clear.

    Clear is three or more of them, and more than twice as many as of any other language of the
    same script.
    """
    spoken, script = words(text), script_of(text)
    hits = Counter(
        {
            language: sum(word in common for word in spoken)
            for language, common in _COMMON_WORDS.items()
            if _SCRIPTS[language] == script
        }
    )
    first, second = [*hits.most_common(2), ("", 0), ("", 0)][:2]
    return first[0] if first[1] >= _FEWEST_HITS and first[1] > 2 * second[1] else ""


def language_fault(record: Record, text: str) -> str:
    """Why a translation is not in the language that was asked for; empty where it may be.

    The script is that of the known translation, else of the language that the row's metadata or
    the prompt names. Within one script the commonest words tell, where they are clear: three or
    more of another language, and more than twice as many as of the one asked for.
    """
    wanted, found = _expected_script(record), script_of(text)
    if wanted and found and wanted != found:
        return f"{found.lower()} letters where {wanted.lower()} was to be expected"
    asked, spoken = _expected_language(record), words(text)
    if asked not in _COMMON_WORDS:
        return ""
    hits = {
        language: sum(word in common for word in spoken)
        for language, common in _COMMON_WORDS.items()
        if _SCRIPTS[language] == _SCRIPTS[asked]
    }
    own = hits.pop(asked)
    best = max(hits, key=hits.__getitem__, default="")
    if best and hits[best] >= _FEWEST_HITS and hits[best] > 2 * own:
        return f"reads as {best.title()} where {asked.title()} was asked for"
    return ""


def _expected_script(record: Record) -> str | None:
    if record.reference:
        return script_of(record.reference)
    return _SCRIPTS.get(_expected_language(record))


def _expected_language(record: Record) -> str:
    """Name of the language that is translated into; empty where nothing says it."""
    for key in _TARGET_KEYS:
        value = str(record.metadata.get(key, "")).lower()
        language = LANGUAGES.get(re.split(r"[-_]", value)[0], value).lower()
        if language in _SCRIPTS:
            return language
    for message in reversed(record.messages):
        for word in _INTO.findall(message.content):
            if word.lower() in _SCRIPTS:
                return word.lower()
    return ""
