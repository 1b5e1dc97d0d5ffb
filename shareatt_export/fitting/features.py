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
    """Collects the input of one layer's W_O, which llama.cpp may split into batches, and ends the computation there."""

    def __init__(self) -> None:
        self._layer = -1
        self._batches: list[FloatRows] = []

    def start(self, layer: int) -> None:
        self._layer, self._batches = layer, []

    def take(self, name: str, layer: int, values: npt.NDArray[np.floating[Any]]) -> object:
        if layer != self._layer:
            return None
        self._batches.append(values.reshape(-1, values.shape[-1]).astype(np.float32))
        return END

    def collected(self) -> FloatRows:
        return np.concatenate(self._batches)


class FeatureReader:
    """Reads what the heads of a layer pass to W_O; the layers after it are not computed."""

    def __init__(self, context: Context, callback: InputCallback, collector: _Collector) -> None:
        self._context, self._callback, self._collector = context, callback, collector

    def read(self, layer: int, tokens: Sequence[int]) -> FloatRows:
        """Return the features of a window of at most n_ctx tokens, [n_tokens, n_head * head_dim]."""
        self._collector.start(layer)
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
