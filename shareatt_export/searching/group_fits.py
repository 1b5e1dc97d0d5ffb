"""New output projections W_O for the layers in which a map lets KV groups follow, or drops them.

A search should compare maps as they will be exported. So the W_O of each touched layer is fitted before a map is
measured: to the attention output of the dense model, from what the kept heads compute with the dense model's attention
weights and V. An export with --refit fits the layers of the map that was found again, each to what the fitted ones
before it compute (fitting/fit.py).
"""

from collections.abc import Mapping
from functools import lru_cache, reduce
from operator import add

import numpy as np

from ..fitting.observer import head_outputs
from ..fitting.ridge import NormalEquations
from ..fitting.trial_model import TrialModel
from ..formats.tensor_copies import FloatRows, RawRows, TensorCopy, float_rows, raw_rows, read_f32
from ..model.attention_map import AttentionMap
from ..plan.cuts import kept_columns
from ..plan.projections import output_columns, projections
from ..system.threads import whole_tasks
from .pair_fits import MAX_BYTES, RIDGE
from .recorded_layers import RecordedLayers

KEPT_BYTES = 1 << 30  # of fitted projections in memory


class GroupFits:
    """Fits the output projections of a dense model for the maps of a search, on what was recorded of its layers."""

    def __init__(self, trial_model: TrialModel, recorded: RecordedLayers, n_threads: int) -> None:
        self._trial_model, self._recorded, self._n_threads = trial_model, recorded, n_threads
        self._header, self._facts = trial_model.header, trial_model.facts
        largest = max(info.n_bytes for name, info in self._header.tensors.items() if ".attn_output." in name)
        self._fitted_layer = lru_cache(maxsize=max(1, KEPT_BYTES // largest))(self._fit_layer)

    def changes(self, attention: AttentionMap) -> Mapping[TensorCopy, RawRows]:
        """Return the fitted projections of the touched layers, as bytes; a layer without any head has none."""
        fitted = (self._fitted_layer(layer, attention.sources[layer]) for layer in attention.touched)
        return dict(each for each in fitted if each is not None)

    def _fit_layer(self, layer: int, sources: tuple[int, ...]) -> tuple[TensorCopy, RawRows] | None:
        attention = self._facts.dense_attention.with_layer(layer, sources)
        output = output_columns(self._header, self._facts, attention, layer)
        if output is None:
            return None
        equations = self._equations(attention, layer)
        before = float_rows(raw_rows(output), output.type).astype(np.float64)
        importance = (np.diag(equations.gram) / self._recorded.n_tokens).astype(np.float32)
        weights = equations.solved(before, RIDGE).astype(np.float32)
        return output, self._trial_model.encoded(weights, output.type, importance)

    def _equations(self, attention: AttentionMap, layer: int) -> NormalEquations:
        columns = kept_columns(self._facts, attention, layer)
        weights = read_f32(projections(self._header, self._facts, layer).output)
        n_bytes = 8 * len(columns) * (len(columns) + len(weights))
        n_parts = max(1, min(self._n_threads, self._recorded.n_windows, MAX_BYTES // n_bytes))

        def of_windows(first: int) -> NormalEquations:
            equations = NormalEquations.empty(len(columns), len(weights))
            for window in range(first, self._recorded.n_windows, n_parts):
                dense, features = self._features(attention, layer, window)
                equations.add(features[:, columns], dense @ weights.T)
            return equations

        with whole_tasks(self._n_threads) as pool:
            return reduce(add, pool.map(of_windows, range(n_parts)))

    def _features(self, attention: AttentionMap, layer: int, window: int) -> tuple[FloatRows, FloatRows]:
        """Return the input of W_O on a window, [n_tokens, n_head * head_dim], in the dense model and with a map."""
        values, n_rep = self._recorded.values(layer, window), attention.n_rep(layer)
        dense = head_outputs(self._recorded.weights(layer, window), values)
        found = dense.reshape(len(dense), len(attention.sources[layer]), -1).copy()
        for group in attention.of_action(layer, "follow"):
            for head, source in zip(attention.heads(group), attention.of(group), strict=True):
                source_layer, source_head = divmod(source, attention.stride)
                (weights,) = self._recorded.weights(source_layer, window, [source_head])
                found[:, head] = weights @ values[head // n_rep]
        return dense, found.reshape(dense.shape)
