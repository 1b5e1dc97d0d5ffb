"""Texts to measure, fit and train with: a user's file, or the documentation that comes with every Python."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A text, and the name that reports show for it."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, as 64 hexadecimal digits."""
        return hashlib.sha256(self.content.encode()).hexdigest()


TextSource = Text | Path | str | None  # a text itself, the path of its file, or None for Python's documentation


def read_text(source: TextSource) -> Text:
    """Return the text. Raises BadInput if the file does not exist or is not UTF-8."""
    if isinstance(source, Text):
        return source
    if source is None:
        from pydoc_data.topics import topics

        return Text("Python's documentation (pydoc_data.topics)", "\n\n".join(topics[key] for key in sorted(topics)))
    try:
        return Text(str(source), Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no such file", path=source) from None
    except UnicodeDecodeError:
        raise BadInput("not UTF-8 text", path=source) from None


def spread(items: Sequence[T], n: int) -> Sequence[T]:
    """Return n of the items, spread evenly over them; all of them if there are no more than n."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else items
