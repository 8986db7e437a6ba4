"""Drawings of the report: plain SVG with classes, so that the page's colours apply.

All are 360 units wide, about a phone's width, so that letters stay legible there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
LETTER = 6.3
"""Width of a letter of a label, a little more than its mean."""

LINE = 13.0


@dataclass(frozen=True)
class Point:
    """One model in a plot."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    is_student: bool = False


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def sticks_out_of(self, other: Box) -> bool:
        return (
            self.left < other.left
            or self.right > other.right
            or self.top < other.top
            or self.bottom > other.bottom
        )


def svg(height: float, title: str, parts: Sequence[str]) -> str:
    """A drawing that says in words what it shows."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= 5:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 5)]


def pareto(
    points: Sequence[Point],
    *,
    title: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> str:
    """Quality upwards against cost to the right (logarithmic), with the front of best deals."""
    left, right, top, bottom = 40.0, WIDTH - 8.0, 10.0, 250.0
    xs = [p.x for p in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    x_low, x_high = min(xs) / 1.6, max(xs) * 1.6
    pad = max((max(ys) - min(ys)) * 0.08, 1e-6)
    y_low, y_high = min(ys) - pad, max(ys) + pad

    def place_x(x: float) -> float:
        share = math.log(x / x_low) / math.log(x_high / x_low)
        return left + share * (right - left)

    def place_y(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    parts = [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    for tick in nice_ticks(y_low, y_high):
        at = place_y(tick)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/>')
        parts.append(_text(left - 5, at + 3.5, y_text(tick), "tick", "end"))
    for tick in log_ticks(x_low, x_high):
        at = place_x(tick)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        parts.append(_text(at, bottom + 15, x_text(tick), "tick", "middle"))
    parts.append(_front(points, place_x, place_y))
    placed = [(place_x(p.x), place_y(p.y)) for p in points]
    for point, (x, y) in zip(points, placed, strict=True):
        kind = ' class="student"' if point.is_student else ""
        whisker = ""
        if point.low is not None and point.high is not None:
            whisker = (
                f'<path class="whisker" d="M{x:.1f} {place_y(point.low):.1f}'
                f'V{place_y(point.high):.1f}"/>'
            )
        parts.append(
            f'<g{kind}>{whisker}<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
        )
    parts += _labels(points, placed, Box(2, top - 6, WIDTH - 2, bottom - 2))
    return svg(bottom + 22, title, parts)


def _front(
    points: Sequence[Point],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> str:
    """Through the models that no other beats in both directions."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    if len(best) < 2:
        return ""
    path = f"M{place_x(best[0].x):.1f} {place_y(best[0].y):.1f}"
    for point in best[1:]:
        path += f"H{place_x(point.x):.1f}V{place_y(point.y):.1f}"
    return f'<path class="front" d="{path}"/>'


def _labels(
    points: Sequence[Point], placed: Sequence[tuple[float, float]], frame: Box
) -> list[str]:
    """A name beside every dot; no name lies on another name or on a dot."""
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in placed]
    parts = []
    order = sorted(range(len(points)), key=lambda i: not points[i].is_student)
    for i in order:
        (x, y), point = placed[i], points[i]
        width = len(point.label) * (LETTER + 0.5 * point.is_student)
        box = _free_box(x, y, width, taken, frame)
        taken.append(box)
        kind = "student" if point.is_student else ""
        near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if math.hypot(near_x - x, near_y - y) > 11:
            parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{near_x:.1f} {near_y:.1f}"/>')
        on_left = (box.left + box.right) / 2 < x
        at, anchor = (box.right, "end") if on_left else (box.left, "start")
        parts.append(_text(at, box.bottom - 3, point.label, kind, anchor))
    return parts


def _free_box(x: float, y: float, width: float, taken: Sequence[Box], frame: Box) -> Box:
    """The nearest free place for a name: rings of growing distance, right side first."""
    nearest = None
    for ring in range(16):
        gap = 7 + 8 * ring
        for angle in (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158):
            dx, dy = gap * math.cos(math.radians(angle)), gap * math.sin(math.radians(angle))
            left = x + dx if dx > 1 else x + dx - width if dx < -1 else x - width / 2
            box = Box(left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
            nearest = nearest or box
            if not box.sticks_out_of(frame) and not any(box.overlaps(other) for other in taken):
                return box
    return nearest


def forest(
    points: Sequence[Point], *, title: str, x_text: Callable[[float], str], zero: float | None
) -> str:
    """One line for each model: its value (x of the point) and interval, its name above them."""
    row, left, right = 34.0, 6.0, WIDTH - 6.0
    values = [v for p in points for v in (p.x, p.low, p.high) if v is not None]
    values += [] if zero is None else [zero]
    span = max(values) - min(values) or 1.0
    low, high = min(values) - 0.04 * span, max(values) + 0.04 * span

    def place(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    height = row * len(points) + 6
    parts = []
    for tick in nice_ticks(low, high, 5):
        parts.append(f'<path class="grid" d="M{place(tick):.1f} 4V{height}"/>')
        parts.append(_text(place(tick), height + 13, x_text(tick), "tick", "middle"))
    if zero is not None:
        parts.append(f'<path class="front" d="M{place(zero):.1f} 0V{height}"/>')
    for i, point in enumerate(points):
        y = row * i + 26
        kind = ' class="student"' if point.is_student else ""
        line = ""
        if point.low is not None and point.high is not None:
            line = (
                f'<path class="whisker" d="M{place(point.low):.1f} {y}H{place(point.high):.1f}"/>'
            )
        parts.append(
            f"<g{kind}>{_text(left, y - 9, point.label, '', 'start')}{line}"
            f'<circle class="dot" cx="{place(point.x):.1f}" cy="{y}" r="4"/></g>'
        )
    return svg(height + 18, title, parts)


@dataclass(frozen=True)
class Line:
    """One curve: validation lines have dots, training lines are thin."""

    label: str
    points: Sequence[tuple[float, float]]
    is_validation: bool = False
    is_student: bool = False


def curves(lines: Sequence[Line], *, title: str) -> str:
    """Losses by step; names stand at the right, and the value axis starts at its lowest point."""
    left, right, top, bottom = 40.0, WIDTH - 76.0, 10.0, 200.0
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_high, y_low, y_high = max(xs) or 1.0, min(ys), max(ys)
    pad = (y_high - y_low or 1.0) * 0.06
    y_low, y_high = y_low - pad, y_high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / x_high * (right - left),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
        )

    parts = [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    for tick in nice_ticks(y_low, y_high):
        y = at(0, tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 5, y + 3.5, f"{tick:.3g}", "tick", "end"))
    for tick in nice_ticks(0, x_high):
        parts.append(_text(at(tick, y_low)[0], bottom + 14, f"{tick:,.0f}", "tick", "middle"))
    ends = []
    for line in lines:
        placed = [at(x, y) for x, y in line.points]
        kind = "curve" + (" student" if line.is_student else "")
        kind += "" if line.is_validation else " train"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if line.is_validation:
            dot = '<circle class="dot" r="2.5"'
            dots = "".join(f'{dot} cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in placed)
            parts.append(f'<g class="student">{dots}</g>' if line.is_student else dots)
        ends.append((placed[-1][1], line))
    ends.sort(key=lambda end: end[0])
    places = _apart([y + 3.5 for y, _ in ends], bottom)
    for y, (_, line) in zip(places, ends, strict=True):
        parts.append(_text(right + 6, y, line.label, "student" * line.is_student, "start"))
    return svg(bottom + 20, title, parts)


def _apart(places: Sequence[float], lowest: float) -> list[float]:
    """Heights of lines of text in their order, none on another, as far as they fit above one."""
    found: list[float] = []
    for y in places:
        found.append(max(y, found[-1] + LINE) if found else y)
    for i in reversed(range(len(found))):
        found[i] = min(found[i], lowest)
        lowest = found[i] - LINE
    return found


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
