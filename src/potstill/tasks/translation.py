"""Translations, scored by chrF: character n-grams need no tokenizer, so any script will do."""

from __future__ import annotations

import dataclasses

from potstill.errors import DataError
from potstill.tasks.asking import ask, fields_of
from potstill.tasks.reading import visible
from potstill.types import Record

RIGHT_FROM = 50.0
"""chrF from which a translation counts as right."""

LANGUAGES = {
    "ar": "Arabic", "as": "Assamese", "bn": "Bengali", "cs": "Czech", "de": "German",
    "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi",
    "ne": "Nepali", "nl": "Dutch", "or": "Odia", "pa": "Punjabi", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit", "si": "Sinhala",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_TARGET_KEYS = ("target_lang", "target_language", "tgt_lang")


@dataclasses.dataclass(frozen=True)
class Translation:
    """Right when chrF with the reference is at least 50."""

    name: str = "translation"
    default_metrics: tuple[str, ...] = ("chrf", "bleu", "accuracy")
    closed: bool = False

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The record, with an instruction where it is a bare text.

        Raises:
            DataError: If the text is bare and its target language is not known.
        """
        if "source" not in fields_of(record):
            return (record,)
        target = next((record.metadata[k] for k in _TARGET_KEYS if record.metadata.get(k)), None)
        if target is None:
            raise DataError(
                f"record {record.id}: into which language? Add a column target_lang (hi, ml, "
                f"German ...), or rows with the instruction in the prompt"
            )
        return (ask(record, before=f"Translate the text into {language(target)}.", name="Text"),)

    def parse(self, text: str, record: Record) -> str | None:
        """The translation, without thoughts in front of it."""
        return visible(text) or None

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 where chrF with any of the references is at least 50."""
        listed = record.metadata.get("references")
        more = [text for text in listed if text] if isinstance(listed, list | tuple) else []
        references = [*([record.reference] if record.reference else []), *more]
        if not references:
            return None
        if prediction is None:
            return 0.0
        return float(chrf(prediction, references) >= RIGHT_FROM)


def language(code: str) -> str:
    """English name of a language code; a name stays as it is."""
    return LANGUAGES.get(code.split("-")[0].split("_")[0].casefold(), code)


def chrf(text: str, references: list[str]) -> float:
    """Sentence chrF2 in [0, 100], best over the references."""
    from sacrebleu.metrics import CHRF

    return CHRF().sentence_score(text, references).score


translation = Translation()
