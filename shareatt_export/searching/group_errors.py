"""How much of its output each head of a dense model loses without its own attention weights.

One pass over some windows shows it for every head of every layer: with the attention weights of any head of a source
layer, and without the head. These errors say which of the many ways to change a KV group are worth a measurement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ..fitting import heads
from ..fitting.observer import ObservedLayer, Observer
from ..formats.gguf_header import Header
from ..formats.tensor_copies import read_f32
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from ..plan.projections import projections
from ..system.progress import Fraction
from ..system.threads import whole_tasks
from .state import Arrays

SCREENING_WINDOWS = 8  # the errors choose what to measure, so a few windows are enough


@dataclass(frozen=True)
class GroupErrors:
    """Sums of squared errors in the attention output of a layer, by head.

    `dropped`: without the head, [n_head] of each layer. `shared`: with the attention weights of a head of the source
    layer, [n_head of the follower, n_head of the source] of each pair.
    """

    dropped: Mapping[int, npt.NDArray[np.float64]]
    shared: Mapping[Pair, heads.Costs]


def measured_errors(
    observer: Observer,
    header: Header,
    facts: Facts,
    pairs: Sequence[Pair],
    windows: Sequence[Sequence[int]],
    n_threads: int,
    watch: Fraction,
) -> GroupErrors:
    """Return the errors of all layers with KV heads, and of these pairs.

    Raises RuntimeProblem where the architecture's graph does not name what is looked for.
    """
    layers = [layer for layer in range(facts.n_layer - facts.n_layer_nextn) if facts.n_head_kv[layer]]
    weights = {layer: read_f32(projections(header, facts, layer).output) for layer in layers}
    dropped = {layer: np.zeros((facts.n_head[layer], 1)) for layer in layers}
    shared = {pair: np.zeros((facts.n_head[pair.follower], facts.n_head[pair.source])) for pair in pairs}

    def add_dropped(observed: Mapping[int, ObservedLayer], layer: int) -> None:
        ours = observed[layer]
        nothing = np.zeros_like(ours.weights[:1])
        dropped[layer] += heads.costs(nothing, ours.weights, ours.values, weights[layer])

    def add_shared(observed: Mapping[int, ObservedLayer], pair: Pair) -> None:
        source, ours = observed[pair.source], observed[pair.follower]
        shared[pair] += heads.costs(source.weights, ours.weights, ours.values, weights[pair.follower])

    for i, tokens in enumerate(windows):
        watch(i / len(windows))
        observed = observer.layers(tokens)
        with whole_tasks(n_threads) as pool:
            list(pool.map(partial(add_dropped, observed), layers))
            list(pool.map(partial(add_shared, observed), pairs))
    return GroupErrors({layer: found[:, 0] for layer, found in dropped.items()}, shared)


def to_arrays(errors: GroupErrors) -> Arrays:
    """Return the errors as named arrays, for the state of a search."""
    dropped = {str(layer): found for layer, found in errors.dropped.items()}
    return dropped | {f"{pair.source}-{pair.follower}": found for pair, found in errors.shared.items()}


def from_arrays(arrays: Arrays) -> GroupErrors:
    """Return the errors that to_arrays() was given."""
    layers = {tuple(map(int, name.split("-"))): found for name, found in arrays.items()}
    return GroupErrors(
        {key[0]: found for key, found in layers.items() if len(key) == 1},
        {Pair(*key): found for key, found in layers.items() if len(key) == 2},
    )
