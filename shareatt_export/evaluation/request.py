"""What `analyze` and `evaluate` are asked for: the options of the commands, and the arguments of the functions."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource


@dataclass(frozen=True)
class AnalyzeRequest:
    """`model`: a dense GGUF or a Hugging Face folder.

    `n_ctx`: tokens of a window. `n_windows`: maximum number of windows. `reach`: maximum number of layers from a source
    to its follower.
    """

    model: Path | str
    text: TextSource = None
    n_ctx: int = 256
    n_windows: int = 16
    reach: int = 8
    n_threads: int = os.cpu_count() or 2


@dataclass(frozen=True)
class EvaluateRequest:
    """`dense`: a GGUF or a Hugging Face folder. `others`: SA GGUFs that were made of it.

    `n_ctx`: tokens of a window. `n_windows`: maximum number of windows. `baselines`: for each SA model, evaluate the
    dense model with the best quantised K cache that takes no more bytes, too. `weights`: with the baselines, evaluate
    the dense model with its weights as Q4_K_M and Q3_K_M, too, if it has better ones. `drop`: for each SA model,
    evaluate the dense model without attention in the layers that share, too. `combined`: evaluate each SA model with
    its own K cache as q8_0, too. `tasks`: files of items to answer (tasks.py).
    `gpu_layers`, `device`: how many layers go to which devices (llamacpp/devices.py).
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
