"""What the layers of a dense model compute on a text: attention weights, V, and the norm of the residual stream.

with observing(built, path, facts, n_ctx=256, n_threads=2) as observer:
    layers = observer.layers(tokens)
    layers[3].weights    # [n_head, n_tokens, n_tokens]
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RuntimeProblem
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import GraphCallback
from ..llamacpp.runtime import RuntimeStatus
from ..model.facts import Facts


@dataclass(frozen=True)
class ObservedLayer:
    """What a layer computes on one window."""

    weights: npt.NDArray[np.float32]  # [n_head, n_tokens, n_tokens]
    values: npt.NDArray[np.float32]  # V, [n_head_kv, n_tokens, head_dim]
    residual: float  # squared norm of the residual stream that the layer reads; 0 for layer 0


class _Collector:
    """Collects what the graph computes for one window. A tensor that comes again replaces the one before."""

    def __init__(self, facts: Facts, n_ctx: int) -> None:
        self._facts, self._n_ctx = facts, n_ctx
        self.weights: dict[int, npt.NDArray[np.float32]] = {}
        self.values: dict[int, npt.NDArray[np.float32]] = {}
        self.residuals: dict[int, float] = {}

    def clear(self) -> None:
        for found in (self.weights, self.values, self.residuals):
            found.clear()

    def take(self, name: str, layer: int, values: npt.NDArray[np.floating[Any]]) -> None:
        if name == "kq_soft_max":
            self.weights[layer] = values[0, :, :, : self._n_ctx].astype(np.float32)
        elif name == "Vcur":
            by_token = values.astype(np.float32).reshape(self._n_ctx, self._facts.n_head_kv[layer], -1)
            self.values[layer] = by_token.transpose(1, 0, 2)
        elif layer + 1 < self._facts.n_layer - self._facts.n_layer_nextn:  # the next layer reads this one's output
            output = values.reshape(self._n_ctx, -1).astype(np.float32)
            self.residuals[layer + 1] = float(np.sum(np.square(output), dtype=np.float64))


class Observer:
    """Runs a dense model on windows of n_ctx tokens and shows what its layers compute."""

    def __init__(
        self, model: Model, facts: Facts, context: Context, callback: GraphCallback, collector: _Collector
    ) -> None:
        self.model = model
        self._facts, self._context, self._callback, self._collector = facts, context, callback, collector

    def layers(self, tokens: Sequence[int]) -> dict[int, ObservedLayer]:
        """Return each layer of a window, by its number, without layers that have no attention.

        The last layers of models that predict several tokens are not among them either, as decoding does not compute
        them. Drop the layers before the next window is observed, so that only one window takes memory. Raises
        RuntimeProblem where the architecture's graph does not name what is looked for.
        """
        collector = self._collector
        collector.clear()
        self._context.clear()
        with self._callback:
            self._context.decode([Token(token, position) for position, token in enumerate(tokens)], last=1)
        n_layer = self._facts.n_layer - self._facts.n_layer_nextn
        layers = [layer for layer in range(n_layer) if self._facts.n_head_kv[layer]]
        self._require(collector.weights, layers, "attention weights")
        self._require(collector.values, layers, "V")
        self._require(collector.residuals, [layer for layer in layers if layer > 0], "output")
        return {
            layer: ObservedLayer(
                collector.weights.pop(layer), collector.values.pop(layer), collector.residuals.get(layer, 0.0)
            )
            for layer in layers
        }

    def _require(self, found: Mapping[int, object], layers: Sequence[int], what: str) -> None:
        if not found.keys() >= set(layers):
            raise RuntimeProblem(f"'{self._facts.arch}' does not name the {what} of its layers", path=self.model.path)


@contextmanager
def observing(built: RuntimeStatus, path: Path, facts: Facts, *, n_ctx: int, n_threads: int) -> Iterator[Observer]:
    """Load the dense model and yield its observer. Windows must have exactly n_ctx tokens."""
    lib = load(built.python, built.bin)
    collector = _Collector(facts, n_ctx)
    callback = GraphCallback(lib, built.bin, ["kq_soft_max", "Vcur", "l_out"], collector.take)
    sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": n_ctx}
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    f32_cache = {"type_k": 0, "type_v": 0}
    with (
        Model(lib, path) as model,
        Context(model, flash_attn=False, cb_eval=callback.callback, **sizes, **threads, **f32_cache) as context,
    ):
        yield Observer(model, facts, context, callback, collector)


def head_outputs(
    weights: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    value_heads: npt.NDArray[np.intp] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the input of W_O, [n_tokens, n_head * head_dim].

    weights: [n_head, n_tokens, n_tokens]; values: V, [n_head_kv, n_tokens, head_dim]. `value_heads`: where heads were
    moved, the head whose V goes with each head of `weights`.
    """
    by_head = np.repeat(values, len(weights) // len(values), axis=0)
    if value_heads is not None:
        by_head = by_head[value_heads]
    return np.ascontiguousarray((weights @ by_head).transpose(1, 0, 2)).reshape(weights.shape[1], -1)
