"""What a search is asked for: the options of `shareatt-export search`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource


@dataclass(frozen=True)
class Budget:
    """What ends a search. Exactly one of the three is given.

    `followers`: number of layers that reuse attention weights. `max_kl`: largest mean KL divergence to the dense model,
    in nats per token. `kv_bytes`: bytes of KV cache (f16) that one token takes.
    """

    followers: int | None = None
    max_kl: float | None = None
    kv_bytes: int | None = None

    @property
    def n_given(self) -> int:
        return sum(value is not None for value in (self.followers, self.max_kl, self.kv_bytes))


@dataclass(frozen=True)
class SearchRequest:
    """`model`: a dense GGUF or a Hugging Face folder. `text`: what the maps are fitted, searched and scored on.

    `n_ctx`: tokens of a window. `n_windows`: windows for the search and again for the scores; twice as many fit the
    followers. `reach`: maximum number of layers from a source to its follower. `beam`: number of maps that are followed
    up. `fast`: add up the errors of pairs instead of measuring maps. `state`: a folder that keeps the fits and the
    measured costs, so that an interrupted search goes on.
    """

    model: Path | str
    followers: int | None = None
    max_kl: float | None = None
    kv_bytes: int | None = None
    text: TextSource = None
    align: bool = True
    refit: bool = True
    n_ctx: int = 256
    n_windows: int = 16
    reach: int = 8
    beam: int = 3
    fast: bool = False
    state: Path | None = None
    n_threads: int = os.cpu_count() or 2

    @property
    def budget(self) -> Budget:
        return Budget(self.followers, self.max_kl, self.kv_bytes)
