"""What the runtime computes, to compare transformers with it, and to measure a healed file as it will be used."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..evaluation.divergence import Divergence, Quality
from ..llamacpp import runtime
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Logits, Model, Token


def threads() -> dict[str, int]:
    """Return how many threads a context is to use: as many as torch, which `heal --threads` sets."""
    return {"n_threads": torch.get_num_threads(), "n_threads_batch": torch.get_num_threads()}


@contextmanager
def _opened(path: Path, n_ctx: int) -> Iterator[Context]:
    built = runtime.require()
    with (
        Model(load(built.python, built.bin), path) as model,
        Context(model, flash_attn=True, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=min(n_ctx, 512), **threads()) as context,
    ):
        yield context


def _logits(context: Context, tokens: Sequence[int]) -> Logits:
    context.clear()
    return context.decode([Token(token, position) for position, token in enumerate(tokens)])


def kl_to_dense(dense: Path, tokens: Sequence[int], logits: Logits) -> float:
    """Return the mean KL divergence from the dense model in the runtime to `logits` [n_token, n_vocab]."""
    with _opened(dense, len(tokens)) as context:
        expected = _logits(context, tokens)
    divergence = Divergence(1, len(tokens) - 1)
    divergence.add(0, 0, logits[:-1, : expected.shape[1]], expected[:-1], np.array(tokens[1:]))
    return float(divergence.kl.mean())


def quality(dense: Path, other: Path, windows: Sequence[Sequence[int]]) -> Quality:
    """Return how well `other` predicts windows of equal length; the second half of each is scored, as in `eval`."""
    n_ctx = len(windows[0])
    divergence = Divergence(len(windows), n_ctx - 1)
    with _opened(dense, n_ctx) as theirs, _opened(other, n_ctx) as ours:
        for i, tokens in enumerate(windows):
            logits, expected = (_logits(context, tokens)[:-1] for context in (ours, theirs))
            divergence.add(i, 0, logits, expected, np.array(tokens[1:]))
    return divergence.quality(n_ctx // 2)
