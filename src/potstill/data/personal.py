"""Personal data in a text: where it stands and of what kind, found by patterns and checksums.

Patterns are looked for in a plain form of the text (ASCII digits, hyphens and spaces whatever
the script, full-width letters made narrow, invisible characters out), and spans are given in
the text as it is. Names have no pattern: they come from a list or from the user's own function.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from potstill.config import PERSONAL_KINDS
from potstill.errors import ConfigError


class Span(NamedTuple):
    """A stretch of text, counted in characters, and what it is."""

    start: int
    end: int
    kind: str


Finder = Callable[[str], list[Span]]
"""A text to its spans in order; none overlaps another."""

# Latin, Greek, Cyrillic, Indic ... but no kana and no Han: those scripts write no spaces, so an
# address may follow a letter of theirs directly.
_GLUE = r"A-Za-z0-9\u00c0-\u1fff"
_STOP = r"""\s@<>()\[\]{},;:"'/\\|=\u00ab\u00bb\u2018-\u201f\u3001-\u3011"""
_EMAILS = (
    re.compile(
        rf"(?<![{_GLUE}.])[A-Za-z0-9_%+][A-Za-z0-9._%+'-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{{2,}}"
        rf"(?![{_GLUE}-])"
    ),
    re.compile(rf"[^{_STOP}]+@(?:[^{_STOP}.!?]+\.)+[^{_STOP}.!?]{{2,}}"),
)
_URLS = (
    re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@:]+:[^\s/@]+@[^\s<>\"')\]]+", re.I),
    re.compile(
        r"https?://[^\s<>\"')\]]*[?&](?:access_token|api_?key|token|password|passwd|secret|sig"
        r"|signature|auth)=[^\s<>\"')\]]+",
        re.I,
    ),
)
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d\d(?:[ -]?[A-Z0-9]){11,30}", re.I)
_CARD = re.compile(r"(?<![\d.,])[2-6](?:[ -]?\d){12,18}(?!\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")
_IPV6 = re.compile(
    r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}(?:[0-9a-f]{1,4}|(?:\d+\.){3}\d+)?(?![\w:])", re.I
)
_PHONE = re.compile(r"(?<![\w.,])\+?[(]?\d(?:[\s().\-/]{0,3}\d){6,16}(?!\d)")
_MONTH = r"[^\s\d,]{3,12}"
_DATE = (
    r"(?P<date>\d{1,4}\s?[./-]\s?\d{1,2}\s?[./-]\s?\d{1,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)?(?: of| de)? {_MONTH},?(?: de)? \d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}"
    r"|\d{4}\s?[年년]\s?\d{1,2}\s?[月월]\s?\d{1,2}\s?[日일]?)(?!\d)"
)
_BIRTH_CUE = re.compile(
    r"date of birth|dob|d\.o\.b|born|birthda|birth da|geburtsdatum|geboren|geb\.|née? le"
    r"|date de naissance|fecha de nacimiento|nacid[oa] el|data di nascita|nat[oa] il"
    r"|जन्म|ജനന|生年月日|出生|生日"
)
_THEN_DATE = re.compile(rf"[^\d\n]{{0,24}}?{_DATE}", re.I)
_WORD = r"[A-ZÀ-ÖØ-Þ0-9][\w'’.-]*"
_ADDRESSES = (
    re.compile(
        rf"(?<!\w)\d{{1,5}}[A-Za-z]?(?:[-/]\d{{1,4}})?,? (?:{_WORD} ){{1,4}}"
        r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Way|Square|Sq|Terrace|Place|Pl|Close"
        r"|Crescent|Nagar|Marg|Colony|Chowk|Bagh)(?!\w)\.?"
        r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor)\.? ?#?[\w-]+)?"
        rf"(?:, {_WORD}(?: {_WORD}){{0,2}})?"
        r"(?:,? (?:[A-Z]{2} )?\d{5,6}(?:-\d{4})?(?!\d)|,? [A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}(?!\w))?"
    ),
    re.compile(
        r"(?<!\w)(?:[A-ZÄÖÜ][\w-]*(?:stra(?:ß|ss)e|str\.|weg|platz|gasse|allee|ring|damm|ufer|chaussee)"
        r"|(?:[A-ZÄÖÜ][\w-]* )?(?:Straße|Strasse|Weg|Platz|Gasse|Allee))"
        r" \d{1,4}(?: ?[a-z])?(?!\w)(?:,? (?:D-)?\d{5} [A-ZÄÖÜ][\w-]+)?"
    ),
    re.compile(r"(?<!\w)(?:P\.? ?O\.? ?Box|Postfach) \d[\d ]*\d(?!\d)"),
)
_US_SSN = re.compile(r"(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])")
_SAID_SSN = re.compile(r"(?:ssn|social security)[^\d\n]{0,24}(?P<number>\d{9})(?!\d)", re.I)
_DE_TAX_ID = re.compile(r"(?<![\w-])[1-9]\d(?: ?\d{3}){3}(?![\w-])")
_IN_AADHAAR = re.compile(r"(?<![\w-])[2-9]\d{3}([- ]?)\d{4}\1\d{4}(?![\w-])")
_UK_NINO = re.compile(
    r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]( ?)\d\d\1\d\d\1\d\d\1"
    r"[A-D](?!\w)",
    re.I,
)
_SHORTEST_IBAN = 15
_WORD_START = re.compile(r"(?:(?<![^\W_])|(?<=[\u0e00-\u0eff\u3040-\u9fff]))\S")
"""Scripts that write no spaces may begin a word at any character."""


def build_finder(
    kinds: Sequence[str] = PERSONAL_KINDS,
    *,
    names: Iterable[str] = (),
    regions: Sequence[str] = (),
    extra: Callable[[str], Iterable[Any]] | None = None,
) -> Finder:
    """A function that finds personal data of these kinds, names and what `extra` adds.

    What overlaps becomes one span, so that nothing that was found stays visible; its kind is
    that of the longest, of equally long ones the first.

    Args:
        names: Found whatever their case, at the beginning of words; an s may follow.
        regions: Countries whose phone numbers are known without a country code.
        extra: Text to (start, end, kind) triples.

    Raises:
        ConfigError: If a name has fewer than two letters; later, if `extra` gives no spans.
    """
    finders: list[Callable[[str], Iterator[Span]]] = [
        functools.partial(_phones, regions=tuple(regions)) if kind == "phone" else _FINDERS[kind]
        for kind in PERSONAL_KINDS
        if kind in kinds
    ]
    index = _index(names)

    def find(text: str) -> list[Span]:
        plain, places = _mapped(text, _PLAIN)
        found = [span for finder in finders for span in finder(plain)]
        spans = [Span(places[s.start], places[s.end - 1] + 1, s.kind) for s in found]
        spans += _names(text, index) if index else []
        spans += _extra(text, extra) if extra else []
        return _merged(spans)

    return find


def _merged(spans: list[Span]) -> list[Span]:
    """Overlapping spans as one, under the kind of the longest."""
    merged: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda s: (s.start, s.start - s.end)):
        length = span.end - span.start
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            kind = span.kind if length > longest else last.kind
            merged[-1] = Span(last.start, max(last.end, span.end), kind)
            longest = max(longest, length)
        else:
            merged.append(span)
            longest = length
    return merged


class _Table(dict[int, str]):
    """What each character becomes; worked out when a text first has it."""

    def __init__(self, change: Callable[[str], str]):
        super().__init__()
        self._change = change

    def __missing__(self, point: int) -> str:
        self[point] = found = self._change(chr(point))
        return found


def _mapped(text: str, table: _Table) -> tuple[str, Sequence[int]]:
    """The text as the table says, and where each of its characters stands in the text."""
    changed = text.translate(table)
    if all(len(table[ord(char)]) == 1 for char in set(text)):
        return changed, range(len(text))
    return changed, [place for place, char in enumerate(text) for _ in table[ord(char)]]


def _plain_char(char: str) -> str:
    if char.isascii():
        return char
    decimal = unicodedata.decimal(char, None)
    if decimal is not None:
        return str(decimal)
    if char == "\u2212":  # the minus sign is a symbol, no dash
        return "-"
    by_category = {"Cf": "", "Pd": "-", "Zs": " "}
    return by_category.get(unicodedata.category(char), unicodedata.normalize("NFKC", char))


def _folded_char(char: str) -> str:
    return unicodedata.normalize("NFKD", _plain_char(char).casefold())


_PLAIN = _Table(_plain_char)
"""As patterns see a text."""

_FOLDED = _Table(_folded_char)
"""As names are compared: without case, accents as marks of their own."""


def _matches(kind: str, *patterns: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield Span(match.start(), match.end(), kind)

    return find


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    covered: set[int] = set()
    for pattern in _EMAILS:
        for match in pattern.finditer(text):
            at = text.index("@", match.start())
            if at not in covered:
                covered.add(at)
                yield Span(match.start(), match.end(), "email")


def _urls(text: str) -> Iterator[Span]:
    if "://" in text:
        yield from _matches("url", *_URLS)(text)


def _ibans(text: str) -> Iterator[Span]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # Words may follow without a break; the checksum says where the number ends.
        for end in range(match.end(), match.start() + _SHORTEST_IBAN - 1, -1):
            part = text[match.start() : end]
            if part[-1].isalnum() and iban.is_valid(part):
                yield Span(match.start(), end, "iban")
                break


def _cards(text: str) -> Iterator[Span]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            yield Span(match.start(), match.end(), "card")


def _ips(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue  # a version number, a time of day
            if not (address.is_loopback or address.is_unspecified):
                yield Span(match.start(), match.end(), "ip")


def _birth_dates(text: str) -> Iterator[Span]:
    lower = text.lower()
    for cue in _BIRTH_CUE.finditer(lower if len(lower) == len(text) else text):
        date = _THEN_DATE.match(text, cue.end())
        if date and not text[cue.start() - 1 : cue.start()].isalnum():
            yield Span(*date.span("date"), "birth_date")


def _ssns(text: str) -> Iterator[Span]:
    from stdnum.us import ssn

    for pattern, group in ((_US_SSN, 0), (_SAID_SSN, "number")):
        for match in pattern.finditer(text):
            if ssn.is_valid(match[group].replace(" ", "-")):
                yield Span(*match.span(group), "us_ssn")


def _tax_ids(text: str) -> Iterator[Span]:
    from stdnum.de import idnr

    for match in _DE_TAX_ID.finditer(text):
        if idnr.is_valid(match[0]):
            yield Span(match.start(), match.end(), "de_tax_id")


def _aadhaars(text: str) -> Iterator[Span]:
    from stdnum.in_ import aadhaar

    for match in _IN_AADHAAR.finditer(text):
        if aadhaar.is_valid(match[0]):
            yield Span(match.start(), match.end(), "in_aadhaar")


def _phones(text: str, *, regions: tuple[str, ...]) -> Iterator[Span]:
    for candidate in _PHONE.finditer(text):
        for start, end in _phone_places(candidate[0], regions):
            yield Span(candidate.start() + start, candidate.start() + end, "phone")


@functools.lru_cache(maxsize=1 << 14)
def _phone_places(text: str, regions: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where in a run of digits phone numbers are; the slowest look of all, so it is remembered."""
    from phonenumbers import PhoneNumberMatcher

    return [
        (found.start, found.end)
        for region in (None, *regions)
        for found in PhoneNumberMatcher(text, region)
    ]


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _ips,
    "url": _urls,
    "birth_date": _birth_dates,
    "address": _matches("address", *_ADDRESSES),
    "us_ssn": _ssns,
    "de_tax_id": _tax_ids,
    "in_aadhaar": _aadhaars,
    "uk_nino": _matches("uk_nino", _UK_NINO),
}


def _index(names: Iterable[str]) -> dict[str, list[str]]:
    """Folded names by their first two characters, the longest first."""
    index: dict[str, list[str]] = {}
    for name in sorted({" ".join(name.split()) for name in names if name.strip()}):
        folded, _ = _mapped(name, _FOLDED)
        if len(folded) < 2:
            raise ConfigError(
                f"data.privacy.names: {name!r} is one letter, which stands in every text; leave "
                f"it out"
            )
        index.setdefault(folded[:2], []).append(folded)
    return {key: sorted(found, key=len, reverse=True) for key, found in index.items()}


def _names(text: str, index: dict[str, list[str]]) -> Iterator[Span]:
    folded, places = _mapped(text, _FOLDED)
    for place in _WORD_START.finditer(folded):
        start = place.start()
        for name in index.get(folded[start : start + 2], ()):
            end = _end_of(name, folded, start)
            # A mark before it is no letter for the pattern, and yet part of a word.
            if end and unicodedata.category(folded[start - 1 : start] or " ")[0] != "M":
                yield Span(places[start], places[end - 1] + 1, "name")
                break


def _end_of(name: str, text: str, start: int) -> int:
    """Where the name ends that begins at `start`; 0 where it is another word."""
    end = start + len(name)
    if not text.startswith(name, start):
        return 0
    # A Latin word that goes on is another word, an s apart. In other scripts endings are
    # written to the name (Malayalam, Japanese), so it counts there too.
    after = text[end : end + 1]
    goes_on = after.isascii() and after.isalnum() and name[-1].isascii()
    if goes_on and not (after == "s" and not text[end + 1 : end + 2].isalnum()):
        return 0
    # Marks belong to the letter before them.
    while end < len(text) and unicodedata.category(text[end])[0] == "M":
        end += 1
    return end


def _extra(text: str, extra: Callable[[str], Iterable[Any]]) -> Iterator[Span]:
    for found in extra(text):
        try:
            start, end, kind = found
            fits = 0 <= start < end <= len(text) and isinstance(kind, str) and bool(kind.strip())
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(
                f"data.privacy.finder gave {found!r} for a text of {len(text)} characters; it must "
                f"give (start, end, kind) triples inside the text"
            )
        yield Span(int(start), int(end), kind)
