"""Cut a text into windows of tokens as llama-perplexity does."""

from ..errors import BadInput
from ..formats.texts import Text, spread
from .engine import Model


def token_windows(model: Model, text: Text, n_ctx: int, n_windows: int | None = None) -> list[list[int]]:
    """Return windows of n_ctx tokens each, at most n_windows of them, spread evenly over the text.

    Each window begins with BOS if the model wants it. As in llama-perplexity, only the text as a whole gets a BOS of
    its own, so that the BOS of each later window replaces a token. Raises BadInput if the text is too short for one.
    """
    first = [model.bos] if model.bos is not None else []
    tokens = [*first, *model.tokenize(text.content)]
    starts = range(0, len(tokens) - n_ctx + 1, n_ctx)
    if not starts:
        raise BadInput(f"{len(tokens)} tokens; a window takes {n_ctx}", path=text.name)
    chosen = starts if n_windows is None else spread(starts, n_windows)
    return [[*first, *tokens[start + len(first) : start + n_ctx]] for start in chosen]
