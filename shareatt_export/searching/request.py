"""What a search is asked for: the options of `shareatt-export search`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource


@dataclass(frozen=True)
class Budget:
    """What ends a search. Exactly one of the four is given.

    `followers`: number of layers that reuse attention weights. `max_kl`: largest mean KL divergence to the dense model,
    in nats per token. `kv_bytes`: bytes of KV cache (f16) that one token takes. `save`: part of these bytes to save.
    """

    followers: int | None = None
    max_kl: float | None = None
    kv_bytes: int | None = None
    save: float | None = None

    @property
    def n_given(self) -> int:
        return sum(value is not None for value in (self.followers, self.max_kl, self.kv_bytes, self.save))

    def in_bytes(self, dense: int) -> "Budget":
        """Return the budget with `kv_bytes` instead of `save`; a token of the dense model takes `dense` bytes."""
        return self if self.save is None else Budget(kv_bytes=round(dense * (1 - self.save)))


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
    save: float | None = None
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
        return Budget(self.followers, self.max_kl, self.kv_bytes, self.save)


@dataclass(frozen=True)
class GroupSearchRequest:
    """A search over KV groups. Exactly one of `kv_bytes`, `save`, `max_kl` and `speedup` is given, and ends it.

    `kv_bytes`, `save`: as in a Budget. `max_kl`: save as many bytes of KV cache as this KL divergence allows.
    `speedup`: decode a token after `decode_at` others so many times as fast, by the bytes that are read.
    `fast`: half of the windows, and fewer maps. `state` keeps the errors of the heads and the measured costs. The other
    fields are those of a SearchRequest.
    """

    model: Path | str
    kv_bytes: int | None = None
    save: float | None = None
    max_kl: float | None = None
    speedup: float | None = None
    decode_at: int = 16384
    text: TextSource = None
    n_ctx: int = 256
    n_windows: int = 16
    reach: int = 8
    fast: bool = False
    state: Path | None = None
    n_threads: int = os.cpu_count() or 2

    @property
    def n_ends(self) -> int:
        return sum(value is not None for value in (self.kv_bytes, self.save, self.max_kl, self.speedup))
