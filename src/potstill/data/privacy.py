"""Personal data out of a record before it is sent, and back into the answer.

A record is hidden by itself and numbered from its first message on, so equal prompts are hidden
equally in every run, and all turns and samples of a conversation share their pseudonyms.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from potstill.config import PrivacyConfig
from potstill.data.personal import Finder, build_finder
from potstill.errors import ConfigError, DataError
from potstill.protocols import resolve_attribute
from potstill.types import Message, Record

LOG_KEY = "log"
"""Where a record from a production log says so in its metadata."""

_GIVEN = ("Robin", "Alex", "Kim", "Jamie", "Casey", "Drew", "Avery", "Quinn", "Rowan",
          "Sage", "Toni", "Noel", "Ariel", "Jules", "Remy", "Sasha", "Eden", "Marlo",
          "Lenn", "Ilan")  # fmt: skip
_FAMILY = ("Carter", "Bennett", "Fowler", "Hollis", "Marlow", "Norwood", "Prescott", "Radley",
           "Sutton", "Thorne", "Whitby", "Alden", "Barlow", "Crosby", "Denton", "Farley",
           "Garner", "Harlow", "Kendal")  # fmt: skip
_NUMBERS = ("iban", "card", "us_ssn", "de_tax_id", "in_aadhaar", "uk_nino")
"""Kinds that are grouped in many ways."""

_MONTH_NAME = re.compile(r"[^\W\d_]{3,}")


class Hidden:
    """A record without its personal data, and the way back."""

    def __init__(self, record: Record, values: dict[str, tuple[str, str]]):
        self.record = record
        self._values = values  # pseudonym -> (value, kind)

    @property
    def counts(self) -> Counter[str]:
        """How many different values of each kind were replaced."""
        return Counter(kind for _, kind in self._values.values())

    @property
    def digest(self) -> str:
        """Hash of what was replaced by what; empty where nothing was."""
        if not self._values:
            return ""
        return hashlib.sha256(json.dumps(self._values).encode()).hexdigest()[:16]

    def restore(self, text: str) -> str:
        """A text about the hidden record with the real values where it has pseudonyms.

        Case does not matter, nor how a number is grouped; of a name, a part is known too.
        """
        return self._way_back(text) if self._values else text

    @functools.cached_property
    def _way_back(self) -> Callable[[str], str]:
        known = {pseudonym: value for pseudonym, (value, _) in self._values.items()}
        parts = [
            part
            for pseudonym, (value, kind) in self._values.items()
            if kind == "name" and len(pseudonym.split()) == len(value.split()) > 1
            for part in zip(pseudonym.split(), value.split(), strict=True)
        ]
        uses = Counter(made for made, _ in parts)
        known |= {made: real for made, real in parts if uses[made] == 1 and made not in known}
        ordered = sorted(known, key=len, reverse=True)
        shapes = "|".join(
            f"({_as_written(text, self._values[text][1] if text in self._values else 'name')})"
            for text in ordered
        )
        pattern = re.compile(shapes, re.I)
        return functools.partial(
            pattern.sub, lambda match: known[ordered[(match.lastindex or 1) - 1]]
        )


def _as_written(pseudonym: str, kind: str) -> str:
    """Pattern of a pseudonym as an answer may write it."""
    between = r"[\s().\-/]{0,3}"
    chars = [char for char in pseudonym if char.isalnum()]
    if kind == "name":
        # An s may follow, as where it was found.
        return rf"(?<![A-Za-z0-9]){re.escape(pseudonym)}(?!(?!s(?![A-Za-z0-9]))[A-Za-z0-9])"
    if kind == "phone":
        return rf"(?<!\d)(?:(?:\+|00)?1{between})?\(?{between.join(chars[1:])}(?!\d)"
    if kind in _NUMBERS:
        return rf"(?<!\d){between.join(chars)}(?!\d)"
    return rf"(?<!\d){re.escape(pseudonym)}(?!\d)"


class Privacy:
    """What is hidden, how, and in which records.

    Args:
        leaves: Whether the teacher is an endpoint, so that what it is asked leaves this machine.

    Raises:
        ConfigError: If the file of names or the finder cannot be read.
    """

    def __init__(self, config: PrivacyConfig, *, leaves: bool):
        self.mode = "off" if config.mode == "auto" and not leaves else config.mode
        self.in_data = config.in_data
        extra = config.finder
        self.find: Finder = build_finder(
            config.kinds,
            names=_read_names(config.names),
            regions=config.regions,
            extra=resolve_attribute(extra, what="data.privacy.finder") if extra else None,
        )

    def covers(self, record: Record) -> bool:
        """Whether the record is one to hide: all, or with `auto` those of production logs."""
        if self.mode == "auto":
            return LOG_KEY in record.metadata
        return self.mode != "off"

    def hide(self, record: Record, *, keep: Iterable[str] = ()) -> Hidden:
        """The record with pseudonyms in messages and reference, and the same in its metadata.

        The same value has the same pseudonym all over the record, and no two values share one.
        In metadata only values that stand in the texts are replaced.

        Args:
            keep: Fields of the metadata that stay as they are.
        """
        texts = [message.content for message in record.messages]
        texts += [] if record.reference is None else [record.reference]
        book = _Book(texts, redact=self.mode == "redact")
        hidden = [book.replace(text, self.find(text)) for text in texts]
        if not book.pseudonyms:
            return Hidden(record, {})
        # Found by its surroundings in one place, a value may stand bare in another.
        hidden = [book.replace_known(text) for text in hidden]
        messages = tuple(
            Message(role=message.role, content=content)
            for message, content in zip(record.messages, hidden, strict=False)
        )
        reference = None if record.reference is None else hidden[-1]
        metadata = {
            key: value if key in keep else _deep(book.replace_known, value)
            for key, value in record.metadata.items()
        }
        changed = {"messages": messages, "reference": reference, "metadata": metadata}
        values = {book.pseudonyms[key]: key for key in book.pseudonyms}
        return Hidden(
            record.model_copy(update=changed),
            {pseudonym: (value, book.kinds[value]) for pseudonym, value in values.items()},
        )

    def conceal(
        self, records: Sequence[Record], *, keep: Iterable[str] = ()
    ) -> tuple[list[Record], Counter[str]]:
        """The records as they are worked with from here on, and what was replaced by kind.

        Records stay as they are unless `in_data`.
        """
        if not self.in_data:
            return list(records), Counter()
        counts: Counter[str] = Counter()
        concealed = []
        for record in records:
            hidden = self.hide(record, keep=keep) if self.covers(record) else Hidden(record, {})
            counts.update(hidden.counts)
            concealed.append(hidden.record)
        return concealed, counts

    def count(self, records: Iterable[Record]) -> Counter[str]:
        """How many values of each kind are hidden from the teacher, record by record."""
        counts: Counter[str] = Counter()
        for record in records:
            if not self.in_data and self.covers(record):
                counts.update(self.hide(record).counts)
        return counts


class _Book:
    """Which value has which pseudonym in one record."""

    def __init__(self, texts: Sequence[str], *, redact: bool):
        self.pseudonyms: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self._redact = redact
        self._used: Counter[str] = Counter()
        self._taken = "\n".join(texts).casefold()

    def replace(self, text: str, spans: Iterable[Any]) -> str:
        parts, at = [], 0
        for start, end, kind in spans:
            parts += [text[at:start], self._pseudonym(text[start:end], kind)]
            at = end
        return "".join([*parts, text[at:]])

    def replace_known(self, text: str) -> str:
        return self._known.sub(lambda match: self.pseudonyms.get(match[0], match[0]), text)

    @functools.cached_property
    def _known(self) -> re.Pattern[str]:
        """Values, and pseudonyms too: what has been replaced must not be looked into again."""
        both = sorted({*self.pseudonyms, *self.pseudonyms.values()}, key=len, reverse=True)
        values = "|".join(re.escape(text) for text in both)
        return re.compile(rf"(?<![^\W_])(?:{values})(?![^\W_])")

    def _pseudonym(self, value: str, kind: str) -> str:
        while value not in self.pseudonyms:
            number = self._used[kind]
            self._used[kind] += 1
            made = f"[{_label(kind)}_{number + 1}]" if self._redact else _make(kind, number, value)
            parts = made.split() if kind == "name" else [made]
            if made in self.pseudonyms.values() or any(p.casefold() in self._taken for p in parts):
                continue  # it stands in the record already, and could not be told from that
            self.pseudonyms[value] = made
            self.kinds[value] = kind
        return self.pseudonyms[value]


def _label(kind: str) -> str:
    return re.sub(r"\W+", "_", kind.strip()).upper()


def _make(kind: str, number: int, value: str) -> str:
    """The pseudonym of a kind with this number, from ranges that belong to nobody."""
    n = number + 1
    if kind == "name":
        return _name(number, len(value.split()))
    if kind == "birth_date":
        return _date(number, value)
    if kind == "ip":
        nets = ("192.0.2", "198.51.100", "203.0.113")  # for documentation, RFC 5737 and 3849
        in_v4 = ":" not in value and n < 3 * 254
        return f"{nets[number // 254]}.{number % 254 + 1}" if in_v4 else f"2001:db8::{n:x}"
    if kind == "iban":
        return f"{value[:2].upper()}00 0000 0000 {n:08d}"  # check digits are never 00
    made = {
        "email": f"person{n}@example.com",
        "phone": f"+1 {201 + number // 100} 555 {100 + number % 100:04d}",  # 555-01xx: nobody's
        "card": f"4000 0000 {n:04d} 000{_wrong_luhn(f'40000000{n:04d}000')}",
        "url": f"https://user{n}:password@example.com/",
        "address": f"{n} Example Street",
        "us_ssn": f"000-{n // 10000:02d}-{n % 10000:04d}",  # area 000 is never given
        "de_tax_id": f"00 {n // 1_000_000:03d} {n // 1000 % 1000:03d} {n % 1000:03d}",
        "in_aadhaar": f"0000 {n // 10_000:04d} {n % 10_000:04d}",  # neither begins with 0
        # No number begins with QQ.
        "uk_nino": f"QQ {n // 10_000:02d} {n // 100 % 100:02d} {n % 100:02d} C",
    }
    return made.get(kind, f"{_label(kind)}-{n}")


def _name(number: int, num_words: int) -> str:
    # 20 and 19 have no common factor: 380 pairs, and then numbers.
    suffix = "" if number < len(_GIVEN) * (len(_FAMILY) if num_words > 1 else 1) else str(number)
    given = [_GIVEN[(number + 7 * k) % len(_GIVEN)] for k in range(max(1, num_words - 1))]
    family = [_FAMILY[number % len(_FAMILY)]] if num_words > 1 else []
    return " ".join(word + suffix for word in (*given, *family))


def _date(number: int, value: str) -> str:
    """A day from 1970 on, written like the value."""
    day = date(1970, 1, 1) + timedelta(days=number)
    month = _MONTH_NAME.search(value)
    if month and month[0].isascii():
        if value[0].isdigit():
            return f"{day.day} {day:%B} {day.year}"
        return f"{day:%B} {day.day}, {day.year}"
    mark = next((char for char in value if char in "./-"), "-")
    if re.match(r"\d{4}", value):
        return day.strftime(f"%Y{mark}%m{mark}%d")
    return day.strftime(f"%d{mark}%m{mark}%Y")


def _wrong_luhn(digits: str) -> int:
    """A last digit that makes a number no card's."""
    from stdnum import luhn

    return (int(luhn.calc_check_digit(digits)) + 1) % 10


def _deep(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _deep(change, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep(change, item) for item in value]
    return value


def _read_names(names: Path | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(names, Path):
        return names
    try:
        return tuple(names.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise ConfigError(f"data.privacy.names: {names} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{names}: byte {error.start + 1} is not UTF-8; save it as UTF-8") from None


_WORDS = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("phone number", "phone numbers"),
    "iban": ("IBAN", "IBANs"),
    "card": ("card number", "card numbers"),
    "ip": ("IP address", "IP addresses"),
    "url": ("URL with credentials", "URLs with credentials"),
    "birth_date": ("date of birth", "dates of birth"),
    "address": ("postal address", "postal addresses"),
    "us_ssn": ("US social security number", "US social security numbers"),
    "de_tax_id": ("German tax id", "German tax ids"),
    "in_aadhaar": ("Aadhaar number", "Aadhaar numbers"),
    "uk_nino": ("UK national insurance number", "UK national insurance numbers"),
    "name": ("name", "names"),
}


def describe(counts: Mapping[str, int]) -> str:
    """What was replaced, for a person: `3 e-mail addresses, 1 name`."""
    parts = []
    for kind, number in sorted(counts.items(), key=lambda item: -item[1]):
        one, many = _WORDS.get(kind, (kind, kind))
        parts.append(f"{number:,} {one if number == 1 else many}")
    return ", ".join(parts)
