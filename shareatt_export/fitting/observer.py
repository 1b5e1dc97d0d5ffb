"""What the layers of a dense model do with a text: attention weights, V, and the residual stream.

with Observer(built, path, facts, n_ctx=256, n_threads=2) as observer:
    layers = observer.layers(tokens)
    layers[3].weights    # [n_head, n_tokens, n_tokens]
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import RuntimeProblem
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import GraphCallback
from ..llamacpp.runtime import RuntimeStatus
from ..model.facts import Facts


class ObservedLayer:
    """What one window shows of a layer."""

    weights: npt.NDArray[np.float32]  # [n_head, n_tokens, n_tokens]
    values: npt.NDArray[np.float32]  # [n_head_kv, n_tokens, head_dim]
    input: npt.NDArray[np.float32]  # [n_tokens, n_embd], the residual stream; not of layer 0


class Observer:
    """Windows of n_ctx tokens, one at a time: the layers of one are overwritten by the next."""

    def __init__(self, built: RuntimeStatus, path: Path, facts: Facts, n_ctx: int, n_threads: int) -> None:
        self._built, self._path, self._facts, self._n = built, path, facts, n_ctx
        self._threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
        self._layers = [ObservedLayer() for _ in range(facts.n_layer)]

    def __enter__(self) -> Self:
        lib = load(self._built.python, self._built.bin)
        taps = GraphCallback(lib, self._built.bin, ["kq_soft_max", "Vcur", "l_out"], self._take)
        n = self._n
        params = {"n_ctx": n, "n_batch": n, "n_ubatch": n, "type_k": 0, "type_v": 0, "cb_eval": taps.callback}
        with ExitStack() as stack:
            self.model = stack.enter_context(Model(lib, self._path))
            self._context = stack.enter_context(Context(self.model, False, **params, **self._threads))
            self._taps = taps
            self._stack = stack.pop_all()
        return self

    def layers(self, tokens: Sequence[int]) -> list[ObservedLayer]:
        """Raises RuntimeProblem where the architecture does not show them."""
        self._context.clear()
        with self._taps:
            self._context.decode([Token(token, position) for position, token in enumerate(tokens)], last_only=True)
        if self._facts.n_layer > 1 and not hasattr(self._layers[1], "input"):
            raise RuntimeProblem(f"{self._path}: '{self._facts.arch}' does not name the output of its layers")
        return self._layers

    def _take(self, name: str, layer: int, values: npt.NDArray[np.floating[Any]]) -> None:
        if name == "kq_soft_max":
            self._layers[layer].weights = values[0, :, :, : self._n].astype(np.float32)
        elif name == "Vcur":
            by_token = values.astype(np.float32).reshape(self._n, self._facts.n_head_kv[layer], -1)
            self._layers[layer].values = by_token.transpose(1, 0, 2)
        elif layer + 1 < self._facts.n_layer:
            self._layers[layer + 1].input = values.reshape(self._n, -1).astype(np.float32)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)


def head_outputs(
    weights: npt.NDArray[np.float32], values: npt.NDArray[np.float32], positions: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.float32]:
    """What the heads bring to W_O: [n_head, n_tokens, n_tokens] x [n_head_kv, n_tokens, head_dim]
    -> [n_tokens, n_head * head_dim]. `positions`: where heads were moved, the head of V for each of the weights."""
    by_head = np.repeat(values, len(weights) // len(values), axis=0)
    if positions is not None:
        by_head = by_head[positions]
    return np.ascontiguousarray((weights @ by_head).transpose(1, 0, 2)).reshape(weights.shape[1], -1)
