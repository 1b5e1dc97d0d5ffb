"""What a benchmark is asked for: the options of `shareatt-export bench`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

N_CTX_UNIT = 256  # llama.cpp rounds the size of a context up to a multiple of it


@dataclass(frozen=True)
class BenchRequest:
    """Which two models to measure, and at which sizes.

    Attributes:
        dense: A dense GGUF.
        sa: An SA GGUF that was made from it.
        depths: Numbers of tokens that are in the context already.
        prompt: Tokens of a prefill.
        generate: Tokens of a decode.
        rounds: Number of turns that each setting takes.
        threads: Number of threads.
        type_k: Type of the K cache, such as "f16" or "q8_0".
        type_v: Type of the V cache.
        p_bytes: Memory budgets for attention weights, in bytes, to measure beside the default.
        gpu_layers: Number of layers on the GPU, -1 for all; by default llama.cpp decides.
        device: Names of devices with commas between them, or "none"; by default llama.cpp decides.
    """

    dense: Path | str
    sa: Path | str
    depths: tuple[int, ...] = (0, 4096)
    prompt: int = 512
    generate: int = 16
    rounds: int = 5
    threads: int = os.cpu_count() or 2
    type_k: str = "f16"
    type_v: str = "f16"
    p_bytes: tuple[int, ...] = ()
    gpu_layers: int | None = None
    device: str | None = None

    @property
    def n_ctx(self) -> int:
        n = max(self.depths) + max(self.prompt, self.generate + 1)
        return -(-n // N_CTX_UNIT) * N_CTX_UNIT
