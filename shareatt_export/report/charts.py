"""The geometry of charts: values become places in a drawing, which a template writes as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .values import Interval
from .words import whole

SHAPES = (  # paths around 0,0: shapes tell series apart where colours cannot
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8L4.6 3.6H-4.6z",
    "M0 -5L5 0L0 5L-5 0z",
    "M-4 -4L4 4M4 -4L-4 4",
    "M0 -5V5M-5 0H5",
    "M0 4.8L4.6 -3.6H-4.6z",
    "M-5 0H5M-3 -4L3 4M3 -4L-3 4",
)
LETTER = 6  # width of a letter
NEAR = ((7, 4), (-7, 4), (0, -8), (0, 15), (7, -6), (-7, -6), (7, 14), (-7, 14))
FAR = ((20, 4), (-20, 4), (0, -20), (0, 27), (18, -14), (-18, -14), (18, 22), (-18, 22), (0, -32), (0, 39))
PLACES = (*NEAR, *FAR)  # of a mark's number beside it
MARK_ROOM, LABEL_ROOM = (11, 9), (15, 12)  # how far a label is from a mark or a label, across or up and down


@dataclass(frozen=True)
class Frame:
    """The size of a drawing, and the place of the axes in it."""

    width: int = 360
    height: int = 300
    left: int = 46
    right: int = 346
    top: int = 24
    bottom: int = 260


FRAME = Frame()


@dataclass(frozen=True)
class Value:
    """A value to draw: its place, what is shown of it, and `id`, by which the script finds it."""

    x: float
    y: Interval
    words: str
    label: str = ""
    id: str = ""


@dataclass(frozen=True)
class Series:
    """Values with a name and a style. `joined`: a line joins them. `marked`: each value has a mark."""

    name: str
    style: int
    values: tuple[Value, ...]
    joined: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    low: float
    high: float
    words: str
    label: str
    label_x: float
    label_y: float
    anchor: str
    id: str


@dataclass(frozen=True)
class Drawn:
    """A series in the drawing."""

    name: str
    style: int
    shape: str | None
    line: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Rule:
    """A line over the whole width, with its name."""

    y: float
    name: str
    name_x: float
    name_y: float
    anchor: str


@dataclass(frozen=True)
class Chart:
    """`x_ticks` and `y_ticks`: places and what is written there."""

    title: str
    x_name: str
    y_name: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    series: tuple[Drawn, ...]
    rules: tuple[Rule, ...]


class Scale:
    """Maps values to places between `start` and `end`. On a logarithmic scale, what is not above 0 is at the start."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, log: bool = False):
        found = [value for value in values if not log or value > 0] or [1.0]
        low, high = min(found), max(found)
        if log:
            low, high = low / 1.5, high * 1.3
        else:
            room = 0.06 * (high - low or abs(high) or 1.0)
            low, high = low - room, high + room
        self.low, self.high, self.log, self._start, self._end = low, high, log, start, end

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self._start + min(max(share, 0.0), 1.0) * (self._end - self._start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        values = self._decades() if self.log else self._steps()
        return tuple((self.place(value), whole(value) if abs(value) >= 1000 else f"{value:g}") for value in values)

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= 3:
                break
        return found

    def _steps(self) -> list[float]:
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    rules: Sequence[tuple[float, str]] = (),
    *,
    log: bool = False,
    x_words: Sequence[str] = (),
) -> Chart:
    """Draw values. `rules`: horizontal lines. `log`: of y.

    `x_words`: what stands at x = 0, 1, 2 in place of numbers.
    """
    values = [value for each in series for value in each.values]
    x = Scale([value.x for value in values], FRAME.left, FRAME.right)
    heights = [end for value in values for end in (value.y.value, *value.y.ends)]
    y = Scale([*heights, *(rule for rule, _ in rules)], FRAME.bottom, FRAME.top, log=log)
    placed = [[(x.place(value.x), y.place(value.y.value)) for value in each.values] for each in series]
    marks = [place for places in placed for place in places]
    free = _Labels(marks)
    return Chart(
        title,
        x_name,
        y_name,
        tuple((x.place(i), word) for i, word in enumerate(x_words)) or x.ticks(),
        y.ticks(),
        tuple(_drawn(each, places, y, free) for each, places in zip(series, placed, strict=True)),
        tuple(_rule(y.place(value), name, marks) for value, name in rules),
    )


def _drawn(series: Series, places: list[tuple[float, float]], y: Scale, free: "_Labels") -> Drawn:
    marks = []
    for value, (at_x, at_y) in zip(series.values, places, strict=True):
        label_x, label_y, anchor = free.place(at_x, at_y) if value.label else (at_x, at_y, "middle")
        low, high = map(y.place, value.y.ends)
        marks.append(Mark(at_x, at_y, low, high, value.words, value.label, label_x, label_y, anchor, value.id))
    line = "".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(places)) if series.joined else ""
    turn, style = divmod(series.style, len(SHAPES))
    shape = SHAPES[(style + turn) % len(SHAPES)] if series.marked else None  # no pair of shape and colour comes twice
    return Drawn(series.name, style, shape, line, tuple(marks))


def _rule(y: float, name: str, marks: Sequence[tuple[float, float]]) -> Rule:
    """Write the name at the end of the line, above or below, where the marks are farthest."""
    width = LETTER * len(name)
    places = [
        (x, at_y, anchor, x + sign * width / 2)
        for x, anchor, sign in ((FRAME.right - 2, "end", -1), (FRAME.left + 4, "start", 1))
        for at_y in (y - 4, y + 11)
    ]

    def room(place: tuple[float, float, str, float]) -> float:
        _, at_y, _, middle = place
        nearest = (math.hypot(max(abs(middle - x) - width / 2, 0.0), at_y - 4 - mark_y) for x, mark_y in marks)
        return min([15.0, *nearest])  # more room is not better

    x, at_y, anchor, _ = max(places, key=room)
    return Rule(y, name, x, at_y, anchor)


class _Labels:
    """Finds for each label a place beside its mark that is clear of all marks and of the labels before it."""

    def __init__(self, marks: Iterable[tuple[float, float]]) -> None:
        self._marks = list(marks)
        self._labels: list[tuple[float, float]] = []

    def place(self, x: float, y: float) -> tuple[float, float, str]:
        dx, dy = max(PLACES, key=lambda offset: self._clearance(*self._middle(x, y, *offset)))
        self._labels.append(self._middle(x, y, dx, dy))
        return x + dx, y + dy, "start" if dx > 0 else "end" if dx < 0 else "middle"

    @staticmethod
    def _middle(x: float, y: float, dx: int, dy: int) -> tuple[float, float]:
        return x + dx + math.copysign(LETTER, dx) * (dx != 0), y + dy - 4

    def _clearance(self, x: float, y: float) -> float:
        """Return 1 where nothing is in the way, and less the nearer something is."""
        if not (FRAME.left < x < FRAME.right and FRAME.top < y < FRAME.bottom):
            return -1.0
        others = [(mark, MARK_ROOM) for mark in self._marks] + [(label, LABEL_ROOM) for label in self._labels]
        return min(
            [1.0, *(max(abs(x - at_x) / width, abs(y - at_y) / height) for (at_x, at_y), (width, height) in others)]
        )


def stairs(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the front through places: more bytes bring nothing before the next place."""
    corners = list(places[:1])
    for (_, before), (x, y) in pairwise(places):
        corners += [(x, before), (x, y)]
    return corners
