"""Torch references with one mistake each. The tests of parity must see the difference between them and the runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shareatt_export.model.spans import SourceMap
from tests.support.torch_reference import SharedReference

N_UBATCH = 32  # size of the ubatches, in tokens, in the modes of parity.py that split a batch


class PreSoftmax(SharedReference):
    """Followers reuse the scores before the softmax."""

    def reused(self, index: int) -> Tensor:
        weights = super().reused(index)
        return torch.where(weights > 0, weights.clamp_min(1e-30).log(), 0.0)


class NoMask(SharedReference):
    """Layers do not mask later positions."""

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return super().attend(layer, query, key, value, None, **kwargs)


class StaleUbatch(SharedReference):
    """Followers reuse the attention weights of the previous ubatch."""

    def reused(self, index: int) -> Tensor:
        weights = super().reused(index).clone()
        weights[:, :, N_UBATCH:] = weights[:, :, :-N_UBATCH].clone()
        return weights


class SourceOffByOne(SharedReference):
    """Followers reuse the attention weights of the layer before their source."""

    def __init__(self, source_layers: SourceMap) -> None:
        super().__init__(tuple(s if s == i else s - 1 for i, s in enumerate(source_layers)))


class ZeroedQuery(SharedReference):
    """The Q of the source is zero, so its attention is uniform."""

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        is_source = self.source_layers.count(int(layer.layer_idx)) > 1  # type: ignore[arg-type]
        return super().attend(layer, query * 0 if is_source else query, key, value, mask, **kwargs)


class SwappedValues(SharedReference):
    """The followers 3 and 4 have each other's V."""

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        first, second = (model.get_parameter(f"model.layers.{i}.self_attn.v_proj.weight") for i in (3, 4))
        first.data, second.data = second.data, first.data
        with super().on(model):
            yield
        first.data, second.data = second.data, first.data


MUTATIONS = {
    "source off by one": SourceOffByOne,
    "scores before the softmax": PreSoftmax,
    "mask skipped": NoMask,
    "V of two followers swapped": SwappedValues,
    "weights of the previous ubatch": StaleUbatch,
    "Q of the source zeroed": ZeroedQuery,
}
