"""Several sequences in one context: its size, and the beginnings that sequences have in common."""

from collections.abc import Sequence

BATCH = 512  # number of tokens that are computed at a time
MAX_LOGITS = 1 << 26  # number of logits of a context that are in memory at a time
N_SEQUENCES = 16
CELLS = 16384  # tokens of all sequences together, unless a single one is longer


def most_outputs(n_vocab: int) -> int:
    """Return how many tokens of a batch may have logits."""
    return max(1, min(BATCH, MAX_LOGITS // n_vocab))


def context_params(longest: int, n_sequences: int = N_SEQUENCES) -> dict[str, int | bool]:
    """Return fields of llama_context_params for sequences of at most `longest` tokens each.

    The cache is unified: tokens that sequences have in common are in it once, and one sequence may take all of it.
    """
    n_ctx = max(longest, min(n_sequences * longest, CELLS))
    return {"n_ctx": n_ctx, "n_batch": BATCH, "n_ubatch": BATCH, "n_seq_max": n_sequences, "kv_unified": True}


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
