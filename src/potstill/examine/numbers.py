"""How numbers look to a person, in the report and in the console alike."""

from __future__ import annotations

from potstill.types import Estimate

MINUS = "\N{MINUS SIGN}"
EN_DASH = "\N{EN DASH}"
UNITS = ("B", "kB", "MB", "GB", "TB")


def count(number: int) -> str:
    """A count with thousands separated: 1,786."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """A stretch of time: 42 ms, 0.21 s, 48 s, 6 min 12 s, 2 h 05 min."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """A size in decimal units: 270 MB."""
    value = float(num_bytes)
    for unit in UNITS:
        if abs(value) < 999.5 or unit == UNITS[-1]:
            break
        value /= 1000
    digits = 0 if unit == "B" or abs(value) >= 9.95 else 1
    return f"{value:.{digits}f} {unit}"


def parameters(number: int | None) -> str:
    """How many weights a model has: 135 M, 1.7 B; empty where it is not known."""
    if number is None:
        return ""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    return str(number)


def number(value: float | None, unit: str = "", *, sign: bool = False) -> str:
    """One value in its unit; a dash where there is none.

    Shares have three decimals, points out of 100 have one.
    """
    if value is None:
        return EN_DASH
    if unit == "seconds":
        text = duration(abs(value))
    elif unit == "bytes":
        text = size(abs(value))
    elif unit == "points":
        text = f"{abs(value):.1f}"
    elif unit in ("tokens/s", "answers/s"):
        text = f"{abs(value):,.0f}" if abs(value) >= 99.5 else f"{abs(value):.1f}"
    elif unit == "x":
        text = f"{abs(value):.2f}x"
    else:
        text = f"{abs(value):.3f}"
    is_zero = not any(character in "123456789" for character in text)
    if value < 0 and not is_zero:
        return MINUS + text
    return ("+" if sign else "") + text


def interval(low: float | None, high: float | None, unit: str = "", *, sign: bool = False) -> str:
    """Both ends of an interval, `[0.774, 0.850]`; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"[{number(low, unit, sign=sign)}, {number(high, unit, sign=sign)}]"


def estimate(found: Estimate, *, sign: bool = False) -> str:
    """A value with its interval: `0.815 [0.774, 0.850]`."""
    ends = interval(found.low, found.high, found.unit, sign=sign)
    return f"{number(found.value, found.unit, sign=sign)} {ends}".strip()


def percent(share: float, *, digits: int = 1) -> str:
    """A share of one for a sentence: 81.5 %."""
    return f"{100 * share:.{digits}f} %".replace("-", MINUS)


def p_value(p: float | None) -> str:
    """A p-value as far as anybody needs it: 0.034, < 0.001."""
    if p is None:
        return EN_DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
