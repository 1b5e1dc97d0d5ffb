"""Training text as windows of tokens, some of them held out.

Each window begins with BOS if the tokenizer begins texts so, as in texts.py. Held-out windows are spread evenly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from ..formats.texts import Text

PIECE = 1 << 16  # characters given to the tokenizer at once: some slow down with the square
HELD_OUT, ONE_IN = 16, 20  # windows, at most one of so many


@dataclass(frozen=True)
class TrainingWindows:
    train: Tensor  # [n_window, n_ctx] of int32
    held_out: Tensor

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Every window once, in an order that hangs on the seed, then again in another order."""
        n = len(self.train)
        places = range(step * size, (step + 1) * size)
        orders = {epoch: _order(n, seed, epoch) for epoch in {place // n for place in places}}
        return self.train[[int(orders[place // n][place % n]) for place in places]].long()


def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def training_windows(tokenizer: Any, texts: Sequence[Text], n_ctx: int) -> TrainingWindows:
    """Raises BadInput where there is not one window to train with and one to hold out."""
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a").input_ids[0] != bos:
        bos = None
    rows = [row for text in texts for row in _rows(tokenizer, text, n_ctx)]
    if len(rows) < 2:
        raise BadInput(f"{texts[0].name}: too short: healing takes two windows of {n_ctx} tokens; see --ctx")
    every = torch.stack(rows)
    if bos is not None:
        every[:, 0] = bos
    n_held = min(HELD_OUT, max(1, len(every) // ONE_IN))
    held = torch.zeros(len(every), dtype=torch.bool)
    held[[i * len(every) // n_held for i in range(n_held)]] = True
    return TrainingWindows(every[~held], every[held])


def _rows(tokenizer: Any, text: Text, n_ctx: int) -> Iterator[Tensor]:
    """Windows do not go from one text into the next."""
    tokens: list[int] = []
    for start in range(0, len(text.content), PIECE):
        tokens += tokenizer(text.content[start : start + PIECE], add_special_tokens=False).input_ids
    n = len(tokens) // n_ctx
    yield from torch.tensor(tokens[: n * n_ctx], dtype=torch.int32).reshape(n, n_ctx)
