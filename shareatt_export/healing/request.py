"""What healing is asked for: the options of `shareatt-export heal`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..formats.texts import TextSource
from ..model.spans import SourceMode

DEFAULT_MINUTES = 15.0
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class HealRequest:
    """`model`: a dense GGUF or a Hugging Face folder. `spans`: as for an export; None takes the spans of `begin`.

    `out`: the SA GGUF or the Hugging Face folder to write, as `model` is; None makes a plan alone. `begin`: an SA GGUF
    that was aligned, refitted or healed, whose weights training starts with. `text`: what to train on.
    `self_text`: train on this many tokens that the model writes itself; only for a GGUF.
    `method`: "full" trains matrices, "lora" differences of rank `rank`. `train_mlp`: train the MLPs of the spans, too.
    `n_ctx`: tokens of a window. `batch`: windows of one step. Training ends after `minutes` or `steps`, whichever comes
    first; without either, after 15 minutes. `dtype`: what the model computes in. `checkpointing`: compute layers again
    for the backward pass, which takes less memory. `resume`: go on with an interrupted run of the same settings.
    """

    model: Path | str
    spans: str | None = None
    out: Path | str | None = None
    text: TextSource = None
    source: SourceMode = "first"
    method: Literal["full", "lora"] = "full"
    rank: int = 16
    train_mlp: bool = False
    learning_rate: float = LEARNING_RATE
    n_ctx: int = 512
    batch: int = 2
    minutes: float | None = None
    steps: int | None = None
    dtype: Literal["f32", "bf16"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpointing: bool = False
    seed: int = 0
    resume: bool = False
    force: bool = False
    begin: Path | None = None
    self_text: int | None = None
    n_threads: int = os.cpu_count() or 2

    @property
    def lora_rank(self) -> int | None:
        return self.rank if self.method == "lora" else None

    @property
    def minutes_limit(self) -> float | None:
        return DEFAULT_MINUTES if self.minutes is None and self.steps is None else self.minutes
