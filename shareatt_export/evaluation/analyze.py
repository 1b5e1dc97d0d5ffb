"""How alike the layers of a model attend, and what it would cost each to use another's attention weights.

The isotropy study of arXiv 2407.12866 (cosine similarity of attention weights between layers), and beside it what that
number does not tell: the error in the attention *output* if layer l used the weights of layer s, next to the error of
having no attention in layer l at all. Similarity alone misleads: layers that only look at the first token are alike.

One pass over the text in windows; what is kept of a window is gone when the next one begins.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import Unsupported
from ..fitting.observer import ObservedLayer, Observer, head_outputs
from ..formats.gguf_header import Header
from ..formats.shards import read_model
from ..formats.tensor_copies import read_f32
from ..formats.texts import Text, read_text
from ..llamacpp import runtime
from ..llamacpp.token_windows import token_windows
from ..model.candidate_pairs import Pair, candidates
from ..model.facts import Facts, read_facts, require_exportable
from ..system.progress import Step, silent
from .request import AnalyzeRequest

Matrix = npt.NDArray[np.float64]
SINK = 0.1  # of the attention of later tokens, mean over layers and heads: what makes a token a sink
WEIGHTS_KEPT = 256 << 20  # bytes of output projections in memory


@dataclass(frozen=True)
class PairErrors:
    """Layer `follower` with the attention weights of layer `source`.

    `error` and `drop_error` are norms of what is missing in the output of attention, relative to that of the residual
    stream that it is added to. `best_heads`: for each head of the follower the most similar one of the source.
    """

    source: int
    follower: int
    similarity: float
    error: float
    drop_error: float
    best_heads: tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    request: AnalyzeRequest
    text: Text
    facts: Facts
    n_windows: int
    sinks_per_window: float
    similarity: Matrix  # [n_layer, n_layer], mean over heads and tokens
    similarity_without_first: Matrix  # the same, weights of the first token left away
    similarity_without_sinks: Matrix  # and those of other sinks
    pairs: tuple[PairErrors, ...]

    def best_source(self, follower: int) -> PairErrors | None:
        return min(
            (pair for pair in self.pairs if pair.follower == follower), key=lambda pair: pair.error, default=None
        )


def analyze(request: AnalyzeRequest, step: Step = silent) -> Analysis:
    """Raises BadInput or Unsupported if the model cannot be analysed."""
    header, text = read_model(Path(request.model)), read_text(request.text)
    facts = read_facts(header)
    if not require_exportable(header).causal:
        raise Unsupported(f"{request.model}: '{facts.arch}' is an encoder; only language models can be analysed")
    if facts.is_shared:
        raise Unsupported(f"{request.model}: shares attention already; analyse the dense model it was made from")
    built = runtime.require()
    step("reading the model", None)
    sums = _Sums(facts, candidates(facts, request.reach), _output_weights(header))
    with Observer(built, header.path, facts, request.n_ctx, request.n_threads) as observer:
        parts = token_windows(observer.model, text, request.n_ctx, request.n_windows)
        for i, tokens in enumerate(parts):
            step("analysing", i / len(parts))
            sums.add(observer.layers(tokens))
    step("analysing", 1.0)
    return sums.analysis(request, text, len(parts))


def _output_weights(header: Header):  # type: ignore[no-untyped-def]
    largest = max(math.prod(info.shape) for name, info in header.tensors.items() if ".attn_output." in name)

    @lru_cache(max(1, WEIGHTS_KEPT // (4 * largest)))
    def weights(layer: int) -> npt.NDArray[np.float32]:
        """[n_embd, n_head * head_dim]"""
        return read_f32(header.tensors[f"blk.{layer}.attn_output.weight"])

    return weights


class _Sums:
    def __init__(self, facts: Facts, candidates: list[Pair], output_weights) -> None:  # type: ignore[no-untyped-def]
        n = facts.n_layer
        self.facts, self.candidates, self.output_weights = facts, candidates, output_weights
        self.similarities = np.zeros((3, n, n))
        self.n_sinks = 0
        self.error = dict.fromkeys(candidates, 0.0)
        self.heads = {pair: np.zeros((facts.n_head[pair.follower],) * 2) for pair in candidates}
        self.attention, self.residual = np.zeros(n), np.zeros(n)

    def add(self, layers: list[ObservedLayer]) -> None:
        sinks = self._sinks(layers)
        self.n_sinks += int(sinks.sum())
        first = np.arange(len(sinks)) == 0
        for i, hidden in enumerate((np.zeros_like(first), first, first | sinks)):
            self.similarities[i] += _similarity(layers, hidden)
        for follower in range(len(layers)):
            sources = [source for source, other in self.candidates if other == follower]
            self._add_errors(layers, sources, follower)
            for source in sources:
                self.heads[Pair(source, follower)] += _head_similarity(layers[source].weights, layers[follower].weights)

    @staticmethod
    def _sinks(layers: list[ObservedLayer]) -> npt.NDArray[np.bool_]:
        """[n_tokens]: much looked at by the tokens after it, mean over layers and heads; never by itself alone."""
        n = layers[0].weights.shape[-1]
        received = np.mean([layer.weights.mean(0) for layer in layers], axis=0)
        later = np.tril(np.ones((n, n)), -1)
        sinks: npt.NDArray[np.bool_] = (received * later).sum(0) / np.maximum(later.sum(0), 1) > SINK
        return sinks

    def _add_errors(self, layers: list[ObservedLayer], sources: list[int], follower: int) -> None:
        ours = layers[follower]
        own = head_outputs(ours.weights, ours.values)
        projection = self.output_weights(follower).T
        self.attention[follower] += np.sum(np.square(own @ projection), dtype=np.float64)
        if follower > 0:
            self.residual[follower] += np.sum(np.square(ours.input), dtype=np.float64)
        for source in sources:
            difference = (head_outputs(layers[source].weights, ours.values) - own) @ projection
            self.error[Pair(source, follower)] += float(np.sum(np.square(difference), dtype=np.float64))

    def analysis(self, request: AnalyzeRequest, text: Text, n_windows: int) -> Analysis:
        relative = np.sqrt(self.attention / np.maximum(self.residual, 1e-30))
        pairs = [
            PairErrors(
                pair.source,
                pair.follower,
                float(self.similarities[0][pair] / n_windows),
                float(np.sqrt(error / self.residual[pair.follower])),
                float(relative[pair.follower]),
                tuple(int(head) for head in self.heads[pair].argmax(0)),
            )
            for pair, error in self.error.items()
        ]
        first, tail, no_sinks = self.similarities / n_windows
        return Analysis(
            request, text, self.facts, n_windows, self.n_sinks / n_windows, first, tail, no_sinks, tuple(pairs)
        )


def _normalised(weights: npt.NDArray[np.float32], hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Rows of length 1, or of zeros where nothing is left."""
    rows = np.where(hidden, np.float32(0), weights)
    rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
    return rows


def _similarity(layers: list[ObservedLayer], hidden: npt.NDArray[np.bool_]) -> Matrix:
    """[n_layer, n_layer]: cosine of attention weights, mean over heads and tokens; 0 where the numbers of heads differ.

    `hidden` [n_tokens] are positions that do not count.
    """
    n, total = len(layers), np.zeros((len(layers), len(layers)))
    heads = [len(layer.weights) for layer in layers]
    visible = np.flatnonzero(np.cumsum(~hidden) > 0)  # tokens that see any position which counts
    for head in range(max(heads)):
        rows = np.zeros((n, len(visible), len(hidden)), np.float32)
        for i, layer in enumerate(layers):
            if head < heads[i]:
                rows[i] = _normalised(layer.weights[head, visible], hidden)
        flat = rows.reshape(n, -1)
        total += (flat @ flat.T) / len(visible)
    same = np.equal.outer(heads, heads)
    return np.where(same, total / np.array(heads)[:, None], 0.0)


def _head_similarity(source: npt.NDArray[np.float32], follower: npt.NDArray[np.float32]) -> Matrix:
    """[heads of the source, heads of the follower], mean over tokens."""
    nothing = np.zeros(source.shape[-1], np.bool_)
    a, b = (_normalised(weights, nothing).reshape(len(weights), -1) for weights in (source, follower))
    mean: Matrix = np.divide(a @ b.T, source.shape[1], dtype=np.float64)
    return mean


def ranked(analysis: Analysis) -> Iterator[PairErrors]:
    """The best source of each follower, the cheapest follower first."""
    best = (analysis.best_source(layer) for layer in range(analysis.facts.n_layer))
    yield from sorted((pair for pair in best if pair), key=lambda pair: pair.error)
