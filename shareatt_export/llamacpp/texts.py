"""Text to measure with: the user's, or Python's own documentation, which every Python brings (English and code)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from .engine import Model


@dataclass(frozen=True)
class Text:
    name: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(path: Path | None) -> Text:
    """Raises BadInput if the file is not UTF-8."""
    if path is None:
        from pydoc_data.topics import topics

        return Text("Python's documentation (pydoc_data.topics)", "\n\n".join(topics[key] for key in sorted(topics)))
    try:
        return Text(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text") from None


def token_windows(model: Model, text: Text, n_ctx: int, n_windows: int | None = None) -> list[list[int]]:
    """The text's tokens in windows of n_ctx, spread evenly over it; each begins with BOS if the model wants that.

    As in llama-perplexity, the text has one, and so the first token of each further window is overwritten.
    Raises BadInput if not one window fits.
    """
    first = [model.bos] if model.bos is not None else []
    tokens = [*first, *model.tokenize(text.content)]
    starts = list(range(0, len(tokens) - n_ctx + 1, n_ctx))
    if not starts:
        raise BadInput(f"{text.name}: {len(tokens)} tokens; a window takes {n_ctx}")
    if n_windows is not None and len(starts) > n_windows:
        starts = [starts[i * len(starts) // n_windows] for i in range(n_windows)]
    return [[*first, *tokens[start + len(first) : start + n_ctx]] for start in starts]
