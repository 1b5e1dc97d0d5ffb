"""Cut training texts into windows of tokens, and hold some of them out.

If the model begins texts with BOS, BOS replaces the first token of each window. The held-out windows are spread
evenly over all texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInput
from ..formats.texts import Text, spread

Encode = Callable[[str], list[int]]

MAX_HELD_OUT = 16  # windows
HELD_OUT_SHARE = 20  # at most one of this many windows is held out


@dataclass(frozen=True)
class TrainingWindows:
    """Windows to train with and windows to score, both [n_window, n_ctx] of int32."""

    train: Tensor
    held_out: Tensor

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Return the windows of a step, [size, n_ctx] of int64.

        An epoch has every window once, in an order that depends on the seed and the epoch.
        """
        n = len(self.train)
        places = range(step * size, (step + 1) * size)
        orders = {epoch: _order(n, seed, epoch) for epoch in {place // n for place in places}}
        return self.train[[int(orders[place // n][place % n]) for place in places]].long()


def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def training_windows(encode: Encode, bos: int | None, texts: Sequence[Text], n_ctx: int) -> TrainingWindows:
    """Return the windows of all texts; `encode` returns the tokens of a text without BOS.

    Raises BadInput if there are fewer than two.
    """
    rows = [row for text in texts for row in _rows(encode, text, n_ctx)]
    if len(rows) < 2:
        reason = f"too short: healing takes two windows of {n_ctx} tokens"
        raise BadInput(reason, path=texts[0].name, next_step="see --ctx")
    windows = torch.stack(rows)
    if bos is not None:
        windows[:, 0] = bos
    return divided(windows)


def divided(windows: Tensor) -> TrainingWindows:
    """Hold out some of the windows [n_window, n_ctx]."""
    n_held_out = min(MAX_HELD_OUT, max(1, len(windows) // HELD_OUT_SHARE))
    held_out = torch.zeros(len(windows), dtype=torch.bool)
    held_out[list(spread(range(len(windows)), n_held_out))] = True
    return TrainingWindows(windows[~held_out], windows[held_out])


def _rows(encode: Encode, text: Text, n_ctx: int) -> Iterator[Tensor]:
    """Yield the windows of one text, so that no window has tokens of two texts."""
    tokens = encode(text.content)
    n = len(tokens) // n_ctx
    yield from torch.tensor(tokens[: n * n_ctx], dtype=torch.int32).reshape(n, n_ctx)
