"""Numbers as people write them: separators, currencies, units, digits of any script."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MINUS = str.maketrans({"−": "-", "–": "-", "—": "-", "‒": "-", "﹣": "-", "⁄": "/", "∕": "/"})
_SEPARATORS = str.maketrans({"٫": ".", "٬": ",", "’": "'"})
_NUMBER = r"(?:\d{1,3}(?:[ '](?=\d{3}))(?:\d{3}[ '])*\d{3}(?!\d)|\d[\d,]*)(?:\.\d+)?|\.\d+"
FOUND = re.compile(rf"(?<![\w.])[-+]?(?:{_NUMBER})(?:[eE][-+]?\d+)?(?!\w)")
_PLAIN = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<before>[^\d\w\s.,()\-+/=^\\{}]*|(?:rs|usd|eur|inr|gbp)\.?)\s*"
    rf"(?P<sign2>[-+]?)(?P<number>{_NUMBER})(?P<power>e[-+]?\d+)?"
    r"(?:\s*/\s*(?P<below>\d+)|\s+(?P<up>\d+)\s*/\s*(?P<down>\d+))?"
    r"\s*(?P<percent>%|percent|per cent|प्रतिशत|ശതമാനം)?"
    r"(?P<unit>\s*[^\W\d_][^\d=+*/^\\{}]*|\s*[°\"'′″€$£₹¥]\w*)?\.?",
    re.IGNORECASE,
)


def plain_digits(text: str) -> str:
    """The text with ASCII digits, minus signs and separators instead of other scripts' own."""
    text = unicodedata.normalize("NFKC", text.translate(_MINUS)).translate(_MINUS)
    text = text.translate(_SEPARATORS)
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)


def number(text: str) -> tuple[Fraction, bool] | None:
    """The one number that a text is, and whether a percent sign follows; None for anything else.

    Currencies in front and units behind do not count: "₹1,20,000", "12 km", "3/4 cup", "४२".
    A comma before exactly three digits, or in Indian groups, separates; else it is a decimal.
    """
    found = _PLAIN.fullmatch(plain_digits(text).strip())
    if found is None:
        return None
    value = _value(found["number"])
    if value is None:
        return None
    if found["power"]:
        exponent = int(found["power"][1:])
        if abs(exponent) > 300:
            return None
        value *= Fraction(10) ** exponent
    for over, under in ((None, found["below"]), (found["up"], found["down"])):
        if under is not None:
            if int(under) == 0:
                return None
            value = value / int(under) if over is None else value + Fraction(int(over), int(under))
    if "-" in (found["sign"], found["sign2"]):
        value = -value
    return value, found["percent"] is not None


def _value(text: str) -> Fraction | None:
    text = text.replace(" ", "").replace("'", "")
    whole, point, decimals = text.partition(".")
    if "," in whole:
        groups = whole.split(",")
        grouped = len(groups[-1]) == 3 and all(0 < len(group) <= 3 for group in groups)
        if grouped:
            whole = "".join(groups)
        elif len(groups) == 2 and not point and groups[1]:
            whole, decimals = groups  # 3,5 is three and a half in much of the world
        else:
            whole = "".join(groups)
    return Fraction(f"{whole or 0}.{decimals or 0}") if (whole or decimals) else None


def last_number(text: str) -> str | None:
    """The last number in a running text, as it stands there."""
    found = FOUND.findall(plain_digits(text))
    return found[-1].rstrip(",") if found else None


def same_number(a: str, b: str) -> bool | None:
    """Whether two texts are the same number; None where one of them is no plain number.

    Half is 0.5, 1/2 and, where only one side writes a percent sign, 50 %.
    """
    first, second = number(a), number(b)
    if first is None or second is None:
        return None
    (x, percent_x), (y, percent_y) = first, second
    if x == y:
        return True
    if percent_x != percent_y:
        return (x / 100 == y) if percent_x else (x == y / 100)
    return False
