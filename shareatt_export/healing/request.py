"""What healing is asked for: the options of `shareatt-export heal`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..formats.texts import TextSource
from ..model.spans import SourceMode

DEFAULT_MINUTES = 15.0


@dataclass(frozen=True)
class HealRequest:
    """What to heal, with which text, and for how long.

    Training ends after `minutes` or `steps`, whichever comes first; without either, after 15 minutes.

    Attributes:
        model: A dense GGUF or a Hugging Face folder.
        spans: Which layers share, in the syntax of `--spans`; by default the spans of `begin`.
        out: What to write: an SA GGUF if `model` is a GGUF, and otherwise a Hugging Face folder. Only a plan
            (`--dry-run`) has none.
        text: What to train on; by default the mixture that comes with the package.
        source: As in an ExportRequest.
        method: "full" trains the matrices, "lora" differences of rank `rank`.
        rank: The rank of these differences.
        train_mlp: Train the MLPs of the layers in spans, too.
        learning_rate: The learning rate after the warm-up; from there it falls to 0. By default, it is
            measured on the first batch, see step_size.py.
        n_ctx: Tokens of a window.
        batch: Number of windows of one step.
        minutes: Minutes of training.
        steps: Number of steps.
        dtype: The type that the model computes in.
        device: "auto" takes a GPU if there is one.
        checkpointing: Compute layers again for the backward pass, which takes less memory and more time.
        seed: Seed of the order of the windows, of what LoRA begins with, and of `self_text`.
        resume: Go on with an interrupted run of the same settings.
        force: Overwrite an output that exists.
        begin: An SA GGUF that was aligned, refitted or healed, whose weights training begins with.
        self_text: Train on this number of tokens that the model writes itself; only for a GGUF.
        n_threads: Number of threads of torch and of the runtime.
    """

    model: Path | str
    spans: str | None = None
    out: Path | str | None = None
    text: TextSource = None
    source: SourceMode = "first"
    method: Literal["full", "lora"] = "full"
    rank: int = 16
    train_mlp: bool = False
    learning_rate: float | None = None
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
