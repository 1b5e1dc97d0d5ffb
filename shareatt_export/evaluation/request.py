"""What `analyze` and `evaluate` are asked for: the options of the commands, and the arguments of the functions."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource


@dataclass(frozen=True)
class AnalyzeRequest:
    """What to analyse, and on which text.

    Attributes:
        model: A dense GGUF or a Hugging Face folder.
        text: What the model reads; by default the mixture that comes with the package.
        n_ctx: Tokens of a window.
        n_windows: Largest number of windows.
        reach: Largest number of layers from a source to its follower.
        n_threads: Number of threads.
    """

    model: Path | str
    text: TextSource = None
    n_ctx: int = 256
    n_windows: int = 16
    reach: int = 8
    n_threads: int = os.cpu_count() or 2


@dataclass(frozen=True)
class EvaluateRequest:
    """Which models to evaluate, on what, and what to compare them with.

    Attributes:
        dense: The dense model: a GGUF or a Hugging Face folder.
        others: SA GGUFs that were made from it.
        text: What the models predict; by default the mixture that comes with the package.
        n_ctx: Tokens of a window; the second half of each window is scored.
        n_windows: Largest number of windows.
        baselines: Also evaluate, for each SA model, the dense model with the best quantised K cache that takes no more
            bytes.
        weights: With `baselines`, also evaluate the dense model with its weights as Q4_K_M and as Q3_K_M, if its own
            weights have more bits.
        drop: Also evaluate, for each SA model, the dense model without attention in the layers that share.
        combined: Also evaluate each SA model with its own K cache as q8_0.
        tasks: Task files, JSON lines with one item each, which the models answer.
        n_threads: Number of threads.
        gpu_layers: Number of layers on the GPU, -1 for all; by default llama.cpp decides.
        device: Names of devices with commas between them, or "none"; by default llama.cpp decides.
    """

    dense: Path | str
    others: tuple[Path | str, ...]
    text: TextSource = None
    n_ctx: int = 512
    n_windows: int = 16
    baselines: bool = True
    weights: bool = True
    drop: bool = False
    combined: bool = False
    tasks: tuple[Path | str, ...] = ()
    n_threads: int = os.cpu_count() or 2
    gpu_layers: int | None = None
    device: str | None = None
