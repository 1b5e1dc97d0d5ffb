"""What the heads of a layer bring to its output projection, one layer at a time."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import END, InputCallback


class Features:
    """What the heads of a layer bring to W_O, [n_tokens, n_head * head_dim]; the layers after it are not computed."""

    def __init__(self, model: Model, bin: Any, n_ctx: int, n_threads: int) -> None:
        self._stack = ExitStack()
        taps = InputCallback(model.lib, bin, ["attn_output"], self._take)
        params = {
            "n_ctx": n_ctx,
            "n_batch": n_ctx,
            "n_ubatch": n_ctx,
            "n_threads": n_threads,
            "n_threads_batch": n_threads,
        }
        self._taps, self._layer = taps, -1
        self._context = self._stack.enter_context(Context(model, True, cb_eval=taps.callback, **params))

    def of(self, layer: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._layer, self._parts = layer, list[npt.NDArray[np.float32]]()
        self._context.clear()
        with self._taps:
            self._context.decode([Token(token, position) for position, token in enumerate(tokens)], last_only=True)
        return np.concatenate(self._parts)  # batches may be split

    def _take(self, name: str, layer: int, values: npt.NDArray[np.floating[Any]]) -> object:
        if layer != self._layer:
            return None
        self._parts.append(values.reshape(-1, values.shape[-1]).astype(np.float32))
        return END

    def __enter__(self) -> "Features":
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)
