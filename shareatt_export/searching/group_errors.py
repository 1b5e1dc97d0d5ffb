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
from ..formats.gguf_header import Header
from ..formats.tensor_copies import read_f32
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from ..plan.projections import projections
from ..system.progress import Fraction
from ..system.threads import whole_tasks
from .recorded_layers import RecordedLayers
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
    recorded: RecordedLayers, header: Header, facts: Facts, pairs: Sequence[Pair], n_threads: int, watch: Fraction
) -> GroupErrors:
    """Return the errors of all layers that were recorded, and of these pairs."""
    layers = list(recorded.layers)
    weights = {layer: read_f32(projections(header, facts, layer).output) for layer in layers}
    dropped = {layer: np.zeros((facts.n_head[layer], 1)) for layer in layers}
    shared = {pair: np.zeros((facts.n_head[pair.follower], facts.n_head[pair.source])) for pair in pairs}

    def add_dropped(window: int, layer: int) -> None:
        ours = recorded.weights(layer, window)
        dropped[layer] += heads.costs(np.zeros_like(ours[:1]), ours, recorded.values(layer, window), weights[layer])

    def add_shared(window: int, pair: Pair) -> None:
        source, ours = recorded.weights(pair.source, window), recorded.weights(pair.follower, window)
        values = recorded.values(pair.follower, window)
        shared[pair] += heads.costs(source, ours, values, weights[pair.follower])

    n_windows = min(recorded.n_windows, SCREENING_WINDOWS)
    for window in range(n_windows):
        watch(window / n_windows)
        with whole_tasks(n_threads) as pool:
            list(pool.map(partial(add_dropped, window), layers))
            list(pool.map(partial(add_shared, window), pairs))
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
