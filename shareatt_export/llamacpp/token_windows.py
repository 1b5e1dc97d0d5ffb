"""Cut texts into windows of tokens as llama-perplexity does."""

from ..errors import BadInput
from ..formats.texts import Corpus, Text, mixed
from .engine import Model

Window = list[int]  # of tokens


def text_windows(model: Model, text: Text, n_ctx: int) -> list[Window]:
    """Return all windows of n_ctx tokens of one text.

    Each window begins with BOS if the model wants it. As in llama-perplexity, only the text as a whole gets a BOS of
    its own, so that the BOS of each later window replaces a token. Raises BadInput if the text is too short for one.
    """
    first = [model.bos] if model.bos is not None else []
    tokens = [*first, *model.tokenize(text.content)]
    starts = range(0, len(tokens) - n_ctx + 1, n_ctx)
    if not starts:
        raise BadInput(f"{len(tokens)} tokens; a window takes {n_ctx}", path=text.name)
    return [[*first, *tokens[start + len(first) : start + n_ctx]] for start in starts]


def token_windows(model: Model, corpus: Corpus, n_ctx: int, n_windows: int) -> list[Window]:
    """Return at most n_windows windows of n_ctx tokens, of all texts by turns.

    Raises BadInput as text_windows() does.
    """
    return [window for _, window in numbered_windows(model, corpus, n_ctx, n_windows)]


def numbered_windows(model: Model, corpus: Corpus, n_ctx: int, n_windows: int) -> list[tuple[int, Window]]:
    """Return the windows of token_windows(), each with the index of its text in the corpus."""
    of_texts = [[(i, window) for window in text_windows(model, text, n_ctx)] for i, text in enumerate(corpus.texts)]
    return mixed(of_texts, n_windows)
