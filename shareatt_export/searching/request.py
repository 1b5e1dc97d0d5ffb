"""What a search is asked for: the options of `shareatt-export search`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource


@dataclass(frozen=True)
class Budget:
    """What ends a search. Exactly one of the four is given.

    Attributes:
        followers: Number of layers that reuse attention weights.
        max_kl: Largest mean KL divergence from the dense model, in nats per token.
        kv_bytes: Bytes of KV cache (f16) that one token takes.
        save: Part of these bytes to save, from 0 to 1.
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
    """Where to search for spans, on which text, and until when.

    Exactly one of `followers`, `max_kl`, `kv_bytes` and `save` is given.

    Attributes:
        model: A dense GGUF or a Hugging Face folder.
        followers: The search ends with this number of layers that reuse attention weights.
        max_kl: It ends before the mean KL divergence from the dense model exceeds this, in nats per token.
        kv_bytes: It ends when a token takes at most this many bytes of KV cache (f16).
        save: It ends when this part of those bytes is saved, from 0 to 1.
        text: What the maps are fitted, searched and scored on; by default the mixture that comes with the package.
        align: Measure maps with the heads of followers in the best order, as an export with `align` has them.
        refit: Measure maps with refitted output projections, as an export with `refit` has them.
        n_ctx: Tokens of a window.
        n_windows: Number of windows for the search, and again for the scores; twice as many fit the followers.
        reach: Largest number of layers from a source to its follower.
        beam: Number of maps that the search follows up at each step.
        fast: Add up the errors of pairs of layers instead of measuring maps.
        state: A folder that keeps the fits and the measured costs, so that an interrupted search goes on.
        n_threads: Number of threads.
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
    """Where to search for what each KV group should do, on which text, and until when.

    Exactly one of `kv_bytes`, `save`, `max_kl` and `speedup` is given.

    Attributes:
        model: A dense GGUF or a Hugging Face folder.
        kv_bytes: The search ends when a token takes at most this many bytes of KV cache (f16).
        save: It ends when this part of those bytes is saved, from 0 to 1.
        max_kl: It saves as many of these bytes as this mean KL divergence from the dense model allows, in nats per
            token.
        speedup: It ends when decoding is so many times as fast as with the dense model, as the bytes that are read
            predict.
        decode_at: Number of tokens in the context for which `speedup` is predicted.
        text: What the maps are fitted, searched and scored on; by default the mixture that comes with the package.
        refit: Measure maps with refitted output projections, as an export with `refit` has them.
        n_ctx: Tokens of a window.
        n_windows: Number of windows for the search, and again for the scores; twice as many for the fits.
        reach: Largest number of layers from a source to its follower.
        drop_only: Let no KV group follow another, so that unpatched llama.cpp can run the map.
        fast: Measure on half of the windows, and measure fewer maps.
        state: A folder that keeps the errors of the heads and the measured costs, so that an interrupted search goes
            on.
        n_threads: Number of threads.
    """

    model: Path | str
    kv_bytes: int | None = None
    save: float | None = None
    max_kl: float | None = None
    speedup: float | None = None
    decode_at: int = 16384
    text: TextSource = None
    refit: bool = True
    n_ctx: int = 256
    n_windows: int = 16
    reach: int = 8
    drop_only: bool = False
    fast: bool = False
    state: Path | None = None
    n_threads: int = os.cpu_count() or 2

    @property
    def n_ends(self) -> int:
        return sum(value is not None for value in (self.kv_bytes, self.save, self.max_kl, self.speedup))
