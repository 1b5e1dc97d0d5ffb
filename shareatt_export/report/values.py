"""Values of a JSON file that this tool wrote, perhaps an older or a newer version of it, perhaps not this tool at all.

A value that is missing, null, infinite or not a number is None: the page leaves out what it does not know. A value of
another type is an error that names the file and the place.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from ..errors import BadInput

T = TypeVar("T")
Rows = tuple[tuple[float | None, ...], ...]
WHOLE = 1 << 63  # whole numbers are smaller


@dataclass(frozen=True)
class Interval:
    """A measured number with its interval; `low` and `high` are None where there is none, as of a single window."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the number itself where there is none."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)


@dataclass(frozen=True)
class Record:
    """A JSON object, the name of its file, and its place there. Every method raises BadInput for a wrong type."""

    data: dict[str, Any]
    file: str
    place: str = ""

    def text(self, key: str) -> str | None:
        return self._typed(key, str, "text")

    def integer(self, key: str) -> int | None:
        found = self._typed(key, int, "a whole number")
        return found if found is None or _is_whole(found) else self._refused(key, "a whole number")

    def number(self, key: str) -> float | None:
        return self._number(key, self.data.get(key))

    def mean(self, key: str) -> Interval | None:
        """Return {"mean": ..., "half_ci95": ...}, or a number, which older versions wrote, as an interval."""
        if not isinstance(self.data.get(key), dict):
            value = self.number(key)
            return None if value is None else Interval(value)
        record = self.only_record(key)
        value, half = record.number("mean"), record.number("half_ci95")
        if value is None or half is None:
            return None if value is None else Interval(value)
        return Interval(value, value - half, value + half)

    def share(self, key: str) -> Interval | None:
        """Return a share; its interval ends at 0 and at 1."""
        if (found := self.mean(key)) is None or found.low is None or found.high is None:
            return found
        return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0))

    def ratio(self, key: str) -> Interval | None:
        """Return a ratio, whose interval is symmetric for its logarithm; the file has the upper half."""
        if (found := self.mean(key)) is None or found.high is None or found.value <= 0:
            return found
        return Interval(found.value, found.value**2 / found.high, found.high)

    def record(self, key: str) -> "Record | None":
        return None if self.data.get(key) is None else self.only_record(key)

    def only_record(self, key: str) -> "Record":
        found = self._typed(key, dict, "an object")
        return Record({}, self.file, self._at(key)) if found is None else Record(found, self.file, self._at(key))

    def records(self, key: str) -> tuple["Record", ...]:
        """Return a list of objects; an empty one where there is none."""
        return tuple(self._records(key))

    def numbers_by_name(self, key: str) -> dict[str, float]:
        record = self.only_record(key)
        found = {name: record.number(name) for name in record.data}
        return {name: value for name, value in found.items() if value is not None}

    def integers(self, key: str) -> tuple[int, ...] | None:
        found = self._list(key)
        if found is not None and not all(map(_is_whole, found)):
            self._refused(key, "a list of whole numbers")
        return None if found is None else tuple(found)

    def texts(self, key: str) -> tuple[str, ...]:
        found = self._list(key) or []
        return tuple(found) if all(isinstance(each, str) for each in found) else self._refused(key, "a list of texts")

    def ends(self, key: str) -> tuple[float, float] | None:
        """Return the two ends of an interval."""
        found = self._list(key)
        if found is None:
            return None
        if len(found) != 2:
            self._refused(key, "two numbers")
        low, high = (self._number(key, end) for end in found)
        return None if low is None or high is None else (low, high)

    def rows(self, key: str) -> Rows | None:
        """Return a list of lists of numbers, all of one length."""
        found = self._list(key)
        if found is None:
            return None
        if not all(isinstance(row, list) for row in found) or len({len(row) for row in found}) > 1:
            self._refused(key, "lists of numbers, all of one length")
        return tuple(tuple(self._number(key, value) for value in row) for row in found)

    def integer_rows(self, key: str) -> tuple[tuple[int, ...], ...] | None:
        """Return a list of lists of whole numbers, of any lengths."""
        found = self._list(key)
        if found is None:
            return None
        if not all(isinstance(row, list) and all(map(_is_whole, row)) for row in found):
            self._refused(key, "lists of whole numbers")
        return tuple(map(tuple, found))

    def wrong(self, key: str, reason: str) -> BadInput:
        """Return the error for a value that has the right type, and contradicts another one."""
        return BadInput(reason, path=self.file, field=self._at(key), next_step="write the file again")

    def _records(self, key: str) -> Iterator["Record"]:
        for i, each in enumerate(self._list(key) or []):
            if not isinstance(each, dict):
                self._refused(f"{key}[{i}]", "an object")
            yield Record(each, self.file, self._at(f"{key}[{i}]"))

    def _list(self, key: str) -> list[Any] | None:
        return self._typed(key, list, "a list")

    def _typed(self, key: str, type: type[T], words: str) -> T | None:
        found = self.data.get(key)
        return found if found is None or isinstance(found, type) else self._refused(key, words)

    def _number(self, key: str, found: Any) -> float | None:
        if isinstance(found, float):
            return found if math.isfinite(found) else None
        return found if found is None else float(found) if _is_whole(found) else self._refused(key, "a number")

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _refused(self, key: str, words: str) -> NoReturn:
        raise self.wrong(key, f"is not {words}")


def _is_whole(found: Any) -> bool:
    return type(found) is int and -WHOLE < found < WHOLE
