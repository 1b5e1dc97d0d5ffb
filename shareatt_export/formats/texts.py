"""Texts to measure, fit and train with: a user's files and folders, or the mixture that comes with this package."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import BadInput
from . import mixture

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A text, and the name that reports show for it.

    Attributes:
        name: The name.
        content: The text.
    """

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, as 64 hexadecimal digits."""
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """One text, or several, usually of different kinds, from which windows are taken by turns.

    Attributes:
        texts: The texts.
    """

    texts: tuple[Text, ...]

    @property
    def name(self) -> str:
        """The names of the texts, with commas between them."""
        return ", ".join(text.name for text in self.texts)

    @property
    def sha256(self) -> str:
        """SHA-256 of the text; of several texts, the SHA-256 of theirs, one per line."""
        digests = [text.sha256 for text in self.texts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


OneText = Text | Path | str  # a text itself, or the path of a file or folder
TextSource = Corpus | OneText | Sequence[OneText] | None  # one text, or several; None or no text: the mixture


def read_corpus(source: TextSource) -> Corpus:
    """Return the texts. Raises BadInput as read_text() does."""
    if isinstance(source, Corpus):
        return source
    if not source:
        return Corpus(tuple(Text(f"mixture/{kind}", content) for kind, content in mixture.texts()))
    sources = [source] if isinstance(source, (Text, Path, str)) else source
    return Corpus(tuple(map(read_text, sources)))


def read_text(source: OneText) -> Text:
    """Return the text of a file, or of all files of a folder in the order of their names.

    Of a folder, hidden files and files that are not UTF-8 are left out. Raises BadInput if there is no such file, it is
    not UTF-8, or a folder has no text.
    """
    if isinstance(source, Text):
        return source
    path = Path(source)
    if path.is_dir():
        contents = list(_contents(path))
        if not contents:
            raise BadInput("has no file in UTF-8", path=source)
        return Text(str(source), "\n\n".join(contents))
    try:
        return Text(str(source), path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no such file", path=source) from None
    except UnicodeDecodeError:
        raise BadInput("not UTF-8 text", path=source) from None


def _contents(folder: Path) -> Iterator[str]:
    """Yield the text of each file."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def spread(items: Sequence[T], n: int) -> Sequence[T]:
    """Return n of the items, spread evenly over them; all of them if there are no more than n."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else items


def mixed(groups: Sequence[Sequence[T]], n: int) -> list[T]:
    """Return n items, as many of each group as can be, spread evenly over it; all if there are no more than n.

    The groups take turns. Another group begins every second time, so that neither the first items nor every fourth are
    all of one group.
    """
    shares = [0] * len(groups)
    while sum(shares) < n and shares != [len(group) for group in groups]:
        for i, group in enumerate(groups):
            if shares[i] < len(group) and sum(shares) < n:
                shares[i] += 1
    chosen = [spread(group, share) if share else () for group, share in zip(groups, shares, strict=True)]
    n_turns, n_groups = max(shares, default=0), len(groups)
    turns = [(turn, (place + turn // 2) % n_groups) for turn in range(n_turns) for place in range(n_groups)]
    return [chosen[i][turn] for turn, i in turns if turn < shares[i]]
