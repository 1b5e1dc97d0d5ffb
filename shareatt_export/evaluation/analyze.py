"""How similarly the layers of a model attend, and the error if a layer used another one's attention weights.

The similarity is that of the isotropy study of arXiv 2407.12866: cosine similarity of attention weights between layers.
Alone it misleads, as all layers that attend to the first token only are alike. So there is also the error in the
attention *output* if layer l used the weights of layer s, beside the error of having no attention in layer l at all.

One pass over the text, in windows; only sums are kept of each window.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import BadInput, Unsupported
from ..fitting.observer import ObservedLayer, head_outputs, observing
from ..formats.gguf_header import Header
from ..formats.shards import read_model
from ..formats.tensor_copies import FloatRows, read_f32
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..llamacpp.token_windows import token_windows
from ..model.candidate_pairs import Pair, candidates
from ..model.facts import Facts, read_facts, require_exportable
from ..system.progress import Step, silent
from ..system.threads import whole_tasks
from .request import AnalyzeRequest

Matrix = npt.NDArray[np.float64]
SINK = 0.1  # a token is a sink if later tokens give it more attention than this, mean over layers and heads
WEIGHTS_KEPT = 256 << 20  # bytes of output projections in memory


@dataclass(frozen=True)
class PairErrors:
    """What changes if layer `follower` uses the attention weights of layer `source`.

    Attributes:
        source: Number of the layer that computes the attention weights.
        follower: Number of the layer that would reuse them.
        similarity: Cosine of the attention weights of both, mean over heads and tokens.
        error: Norm of what is missing in the follower's attention output, relative to that of the residual stream that
            it is added to.
        drop_error: The same without any attention in the follower.
        head_similarity: Cosine of each pair of heads, mean over tokens, [heads of the source, heads of the follower].
    """

    source: int
    follower: int
    similarity: float
    error: float
    drop_error: float
    head_similarity: Matrix

    @property
    def best_heads(self) -> tuple[int, ...]:
        """For each head of the follower, the most similar head of the source."""
        return tuple(int(head) for head in self.head_similarity.argmax(0))


@dataclass(frozen=True)
class Analysis:
    """How similarly the layers attend, and what sharing and dropping would change.

    The similarities are cosines of attention weights, mean over heads and tokens, in arrays of shape [n_layer,
    n_layer]. They are 0 between layers with different numbers of heads. An attention sink is a token to which later
    tokens give more than a tenth of their attention.

    Attributes:
        request: What was asked for.
        text: The text that was read.
        facts: What the header of the model says: layers, heads, widths.
        n_windows: Number of windows that were read.
        sinks_per_window: Mean number of attention sinks in a window.
        similarity: Similarity of all attention weights.
        similarity_without_first: Similarity without the weights of the first token.
        similarity_without_sinks: Similarity without the weights of the first token and of all sinks.
        pairs: The errors of each pair of a source and a follower.
    """

    request: AnalyzeRequest
    text: Corpus
    facts: Facts
    n_windows: int
    sinks_per_window: float
    similarity: Matrix
    similarity_without_first: Matrix
    similarity_without_sinks: Matrix
    pairs: tuple[PairErrors, ...]

    def best_source(self, follower: int) -> PairErrors | None:
        """Return the pair with the least error; None if no layer could be a source of this follower."""
        return min(
            (pair for pair in self.pairs if pair.follower == follower), key=lambda pair: pair.error, default=None
        )


def analyze(request: AnalyzeRequest, step: Step = silent) -> Analysis:
    """Analyse a dense language model.

    Raises BadInput where the text is too short, Unsupported for encoders and SA files, RuntimeProblem where the runtime
    does not show the attention of this architecture.
    """
    header, text = read_model(Path(request.model)), read_corpus(request.text)
    facts = read_facts(header)
    if not require_exportable(header).causal:
        raise Unsupported(
            f"'{facts.arch}' is an encoder", path=request.model, next_step="only language models can be analysed"
        )
    if facts.is_shared:
        raise Unsupported(
            "shares attention already", path=request.model, next_step="analyse the dense model it was made from"
        )
    built = runtime.require()
    step("reading the model", None)
    sums = _Sums(facts, candidates(facts, request.reach), _output_weights(header), request.n_threads)
    with observing(built, header.path, facts, n_ctx=request.n_ctx, n_threads=request.n_threads) as observer:
        windows = token_windows(observer.model, text, request.n_ctx, request.n_windows)
        for i, tokens in enumerate(windows):
            step("analysing", i / len(windows))
            sums.add(observer.layers(tokens))
    step("analysing", 1.0)
    return sums.analysis(request, text, len(windows))


def _output_weights(header: Header) -> Callable[[int], FloatRows]:
    """Return a function that reads W_O of a layer, [n_embd, n_head * head_dim], and keeps some of them in memory."""
    largest = max(math.prod(info.shape) for name, info in header.tensors.items() if ".attn_output." in name)

    @lru_cache(max(1, WEIGHTS_KEPT // (4 * largest)))
    def weights(layer: int) -> FloatRows:
        return read_f32(header.tensors[f"blk.{layer}.attn_output.weight"])

    return weights


class _Sums:
    """Sums over windows. `output_weights` gives W_O of a layer, [n_embd, n_head * head_dim]."""

    def __init__(
        self, facts: Facts, pairs: Sequence[Pair], output_weights: Callable[[int], FloatRows], n_threads: int
    ) -> None:
        n = facts.n_layer
        self.facts, self.pairs, self.output_weights, self.n_threads = facts, pairs, output_weights, n_threads
        self.similarities = np.zeros((3, n, n))
        self.n_sinks = 0
        self.error = dict.fromkeys(pairs, 0.0)
        self.heads = {pair: np.zeros((facts.n_head[pair[1]],) * 2) for pair in pairs}
        self.attention, self.residual = np.zeros(n), np.zeros(n)

    def add(self, layers: Mapping[int, ObservedLayer]) -> None:
        sinks = _sinks(layers)
        self.n_sinks += int(sinks.sum())
        first = np.arange(len(sinks)) == 0
        for i, hidden in enumerate((np.zeros_like(first), first, first | sinks)):
            self.similarities[i] += _similarity(layers, hidden, self.facts.n_layer)
        with whole_tasks(self.n_threads) as pool:
            list(pool.map(partial(self._add_follower, layers), layers))

    def _add_follower(self, layers: Mapping[int, ObservedLayer], follower: int) -> None:
        sources = [source for source, other in self.pairs if other == follower]
        ours = layers[follower]
        own = head_outputs(ours.weights, ours.values)
        projection = self.output_weights(follower).T
        self.attention[follower] += np.sum(np.square(own @ projection), dtype=np.float64)
        self.residual[follower] += ours.residual
        for source in sources:
            difference = (head_outputs(layers[source].weights, ours.values) - own) @ projection
            self.error[Pair(source, follower)] += float(np.sum(np.square(difference), dtype=np.float64))
            self.heads[Pair(source, follower)] += _head_similarity(layers[source].weights, ours.weights)

    def analysis(self, request: AnalyzeRequest, text: Corpus, n_windows: int) -> Analysis:
        relative = np.sqrt(self.attention / np.maximum(self.residual, 1e-30))
        pairs = [
            PairErrors(
                source=source,
                follower=follower,
                similarity=float(self.similarities[0][source, follower] / n_windows),
                error=float(np.sqrt(error / self.residual[follower])),
                drop_error=float(relative[follower]),
                head_similarity=self.heads[Pair(source, follower)] / n_windows,
            )
            for (source, follower), error in self.error.items()
        ]
        similarity, without_first, without_sinks = self.similarities / n_windows
        return Analysis(
            request=request,
            text=text,
            facts=self.facts,
            n_windows=n_windows,
            sinks_per_window=self.n_sinks / n_windows,
            similarity=similarity,
            similarity_without_first=without_first,
            similarity_without_sinks=without_sinks,
            pairs=tuple(pairs),
        )


def _sinks(layers: Mapping[int, ObservedLayer]) -> npt.NDArray[np.bool_]:
    """Return which tokens are sinks, [n_tokens]. Attention of a token to itself does not count."""
    received = np.mean([layer.weights.mean(0) for layer in layers.values()], axis=0)
    n = received.shape[-1]
    later = np.tril(np.ones((n, n)), -1)
    sinks: npt.NDArray[np.bool_] = (received * later).sum(0) / np.maximum(later.sum(0), 1) > SINK
    return sinks


def _normalised(weights: npt.NDArray[np.float32], hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the rows with length 1, or with zeros where all their weights are hidden."""
    rows = np.where(hidden, np.float32(0), weights)
    rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
    return rows


def _similarity(layers: Mapping[int, ObservedLayer], hidden: npt.NDArray[np.bool_], n: int) -> Matrix:
    """Return the cosine similarity between n layers, [n, n]; 0 for layers that are not in `layers`.

    `hidden` [n_tokens]: positions whose attention weights do not count.
    """
    total = np.zeros((n, n))
    heads = [len(layers[layer].weights) if layer in layers else 0 for layer in range(n)]
    visible = np.flatnonzero(np.cumsum(~hidden) > 0)  # tokens that see any position which counts
    for head in range(max(heads)):
        rows = np.zeros((n, len(visible), len(hidden)), np.float32)
        for i, layer in layers.items():
            if head < heads[i]:
                rows[i] = _normalised(layer.weights[head, visible], hidden)
        flat = rows.reshape(n, -1)
        total += (flat @ flat.T) / len(visible)
    same = np.equal.outer(heads, heads)
    return np.where(same, total / np.maximum(heads, 1)[:, None], 0.0)


def _head_similarity(source: npt.NDArray[np.float32], follower: npt.NDArray[np.float32]) -> Matrix:
    """Return the cosine similarity, [heads of the source, heads of the follower], mean over tokens."""
    nothing = np.zeros(source.shape[-1], np.bool_)
    a, b = (_normalised(weights, nothing).reshape(len(weights), -1) for weights in (source, follower))
    mean: Matrix = np.divide(a @ b.T, source.shape[1], dtype=np.float64)
    return mean


def check_checkpoint(found: Analysis, first: Analysis) -> None:
    """Raise BadInput where two models have other layers or heads, so that they are no checkpoints of one model."""
    if found.facts.n_layer != first.facts.n_layer:
        reason = f"has {found.facts.n_layer} layers, {first.request.model} has {first.facts.n_layer}"
    elif found.facts.n_head != first.facts.n_head:
        reason = f"has other numbers of heads than {first.request.model}"
    else:
        return
    raise BadInput(reason, path=found.request.model, next_step="name checkpoints of one model")


def neighbour_similarity(facts: Facts, similarity: Matrix) -> float:
    """Return the mean similarity of neighbouring layers with the same number of heads; NaN if there are none."""
    heads = np.array(facts.n_head)
    return float(np.diagonal(similarity, 1)[(heads[:-1] == heads[1:]) & (heads[1:] > 0)].mean())


def ranked(analysis: Analysis) -> Iterator[PairErrors]:
    """Yield the best source of each follower, the follower with the least error first."""
    best = (analysis.best_source(layer) for layer in range(analysis.facts.n_layer))
    yield from sorted((pair for pair in best if pair), key=lambda pair: pair.error)
