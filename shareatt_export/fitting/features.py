"""The inputs of a layer's output projection W_O: what its heads compute, one layer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.tensor_copies import FloatRows
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import END, InputCallback


class _Collector:
    """Collects the inputs of W_O of some layers, which llama.cpp may split into batches, and ends after the last."""

    def __init__(self) -> None:
        self._batches: dict[int, list[FloatRows]] = {}

    def start(self, layers: Sequence[int]) -> None:
        self._batches = {layer: [] for layer in layers}

    def take(self, name: str, layer: int, values: npt.NDArray[np.floating[Any]]) -> object:
        if layer not in self._batches:
            return None
        self._batches[layer].append(values.reshape(-1, values.shape[-1]).astype(np.float32))
        return END if layer == max(self._batches) else None

    def collected(self) -> dict[int, FloatRows]:
        return {layer: np.concatenate(batches) for layer, batches in self._batches.items()}


class FeatureReader:
    """Reads what the heads of layers pass to W_O; the layers after the last of them are not computed."""

    def __init__(self, context: Context, callback: InputCallback, collector: _Collector) -> None:
        self._context, self._callback, self._collector = context, callback, collector

    def read(self, layers: Sequence[int], tokens: Sequence[int]) -> dict[int, FloatRows]:
        """Return the features of a window of at most n_ctx tokens for each layer, [n_tokens, n_head * head_dim]."""
        self._collector.start(layers)
        self._context.clear()
        with self._callback:
            self._context.decode([Token(token, position) for position, token in enumerate(tokens)], last=1)
        return self._collector.collected()


@contextmanager
def feature_reader(model: Model, bin: Path, *, n_ctx: int, n_threads: int) -> Iterator[FeatureReader]:
    """Yield a reader of `model`, with a context of its own. `bin` is the folder of the runtime's libraries."""
    collector = _Collector()
    callback = InputCallback(model.lib, bin, ["attn_output"], collector.take)
    sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": n_ctx}
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    with Context(model, flash_attn=True, cb_eval=callback.callback, **sizes, **threads) as context:
        yield FeatureReader(context, callback, collector)
