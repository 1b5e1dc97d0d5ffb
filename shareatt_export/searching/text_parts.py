"""The parts of a text for a search: the first half for fitting, the third quarter to search, the last for scores."""

from collections.abc import Sequence

from ..errors import BadInput
from ..formats.texts import Corpus, mixed
from ..llamacpp.engine import Model
from ..llamacpp.token_windows import text_windows

MIN_WINDOWS = 8  # of a text, so that each part of it has two
Windows = Sequence[Sequence[int]]  # of tokens


def parts(model: Model, text: Corpus, n_ctx: int, n_windows: int) -> tuple[Windows, Windows, Windows]:
    """Return at most 2 * n_windows windows to fit with, and n_windows to search with and to score with, of each text.

    Raises BadInput if a text is too short.
    """
    of_texts = [text_windows(model, each, n_ctx) for each in text.texts]
    for each, windows in zip(text.texts, of_texts, strict=True):
        if len(windows) < MIN_WINDOWS:
            raise BadInput(f"{len(windows)} windows of {n_ctx} tokens; a search needs {MIN_WINDOWS}", path=each.name)
    halves = [(windows, len(windows) // 2, 3 * len(windows) // 4) for windows in of_texts]
    return (
        mixed([windows[:half] for windows, half, _ in halves], 2 * n_windows),
        mixed([windows[half:three_quarters] for windows, half, three_quarters in halves], n_windows),
        mixed([windows[three_quarters:] for windows, _, three_quarters in halves], n_windows),
    )
