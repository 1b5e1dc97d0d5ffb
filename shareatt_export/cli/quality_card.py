"""The part of a model card that says what an evaluation measured: `shareatt-export eval --card`.

An export writes a card with two marker lines. An evaluation changes only what is between them, so that the rest of the
card is its author's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from .._version import __version__
from ..errors import BadInput
from ..evaluation.evaluate import Evaluation
from ..llamacpp.pin import patch_id, pin
from ..system.staging import write_text
from .evaluate_report import ANSWER_COLUMNS, SCORE_COLUMNS, answer_rows, answers_legend, comparisons, measured_on
from .output import command_line

CARD = "README.md"
BEGIN = "<!-- quality: 'shareatt-export eval --card' replaces what is between these two lines -->"
END = "<!-- end of quality -->"
NOT_MEASURED = (
    BEGIN,
    "",
    "What this costs in quality was not measured here. `shareatt-export eval DENSE FILE --card` measures it.",
    "",
    END,
)
COLUMNS = ("file bytes", "KV/token", "perplexity", "change", "KL", "same top")  # of SCORE_COLUMNS


def cards_of(others: Iterable[Path]) -> dict[Path, tuple[Path, ...]]:
    """Return the model card in each folder with SA files, and these files.

    Raises BadInput if there is no card, it has not one place for the quality, or does not name a file.
    """
    found: dict[Path, tuple[Path, ...]] = {}
    for path in others:
        card = path.parent.resolve() / CARD
        before, after = _around(card)
        if not re.search(rf"(?<![\w.-]){re.escape(path.name)}(?![\w-])", "".join((*before, *after))):
            next_step = "add the name to the card, if it is the card of this file"
            raise BadInput(f"does not name {path.name}", path=card, next_step=next_step)
        found[card] = (*found.get(card, ()), path)
    return found


def write_cards(evaluation: Evaluation, cards: Mapping[Path, Sequence[Path]]) -> Iterator[Path]:
    """Write into each card what was measured of its files, and yield it. Raises BadInput as cards_of() does."""
    for card, files in cards.items():
        before, after = _around(card)
        line_end = before[-1].removeprefix(BEGIN)
        lines = (f"{line}{line_end}" for line in _quality(evaluation.only(files)))
        write_text(card, "".join((*before, *lines, *after)), force=True)
        yield card


def _around(card: Path) -> tuple[list[str], list[str]]:
    """Return the lines of a card up to the first marker, and from the second one on, with their ends."""
    try:
        lines = card.read_bytes().decode().split("\n")
    except FileNotFoundError:
        raise BadInput("no such file", path=card, next_step="an export with --card writes it") from None
    except UnicodeDecodeError:
        raise BadInput("not UTF-8 text", path=card) from None
    bare = [line.removesuffix("\r") for line in lines]
    if (bare.count(BEGIN), bare.count(END)) != (1, 1) or bare.index(END) < bare.index(BEGIN):
        next_step = f"write the line {BEGIN} once, and the line {END} once below it"
        raise BadInput("has not one place for the quality", path=card, next_step=next_step)
    lines = [*(f"{line}\n" for line in lines[:-1]), lines[-1]]
    return lines[: bare.index(BEGIN) + 1], lines[bare.index(END) :]


def _quality(evaluation: Evaluation) -> Iterator[str]:
    """Yield the lines. The marks of Markdown in names are escaped, so that no line can look like a marker."""
    yield from ("", f"Measured by shareatt-export {__version__} with", "", f"    {command_line()}", "")
    rows = [[score.subject.name, *(SCORE_COLUMNS[title](score) for title in COLUMNS)] for score in evaluation.scores]
    yield from _table(("", *COLUMNS), rows)
    yield from ("", _plain(f"{measured_on(evaluation)} SHA-256 of the text: {evaluation.text.sha256}."))
    yield from map(_plain, comparisons(evaluation))
    if evaluation.answers:
        yield from ("", *_table(ANSWER_COLUMNS, answer_rows(evaluation)), "", answers_legend())
        digests = {each.tasks.path.name: each.tasks.sha256 for each in evaluation.answers}
        yield _plain(f"SHA-256 of the tasks: {', '.join(f'{name} {digest}' for name, digest in digests.items())}.")
    yield from (f"Runtime: llama.cpp {pin().llama_cpp_commit} with patch {patch_id()}, ABI {pin().abi}.", "")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line and in one cell of a table."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))
