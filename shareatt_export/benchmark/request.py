"""What a benchmark is asked for: the options of `shareatt-export bench`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

N_CTX_UNIT = 256  # llama.cpp rounds the size of a context up to a multiple of it


@dataclass(frozen=True)
class BenchRequest:
    """`dense`: a dense GGUF. `sa`: an SA GGUF that was made of it.

    `depths`: numbers of tokens that are in the context already. `prompt`: tokens of a prefill. `generate`: tokens of
    a decode. `rounds`: turns that each setting takes. `type_k`, `type_v`: types of the KV cache. `p_bytes`: memory
    budgets for attention weights, in bytes, to measure beside the default. `gpu_layers`, `device`: how many layers go
    to which devices (llamacpp/devices.py).
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
