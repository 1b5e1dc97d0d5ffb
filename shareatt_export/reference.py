"""Shared Attention in transformers, for any architecture, as the reference that the runtime is held against.

    with SharedReference(source_layers).on(model):
        logits = model(input_ids).logits

One function registered with transformers' attention interface does it, so no model file is copied: a source layer
runs its architecture's own eager attention (soft caps, sinks and all) and leaves its weights, a follower multiplies
them with its own V. What the follower's Q and K projections compute is thrown away.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "shareatt_reference"


class SharedReference:
    """`weights` holds the attention weights of each source layer in the last forward, [n_batch, n_head, n_q, n_kv]."""

    def __init__(self, source_layers: tuple[int, ...]) -> None:
        self.source_layers = source_layers
        self.weights: dict[int, Tensor] = {}

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """query [n_batch, n_head, n_q, head_dim], key and value [n_batch, n_head_kv, n_kv, head_dim]."""
        index = layer.layer_idx
        assert isinstance(index, int)  # noqa: S101  (every attention module of transformers has one)
        if self.source_layers[index] == index:
            eager = _eager(layer)
            output, _ = eager(layer, query, key, value, mask, **kwargs)
            # The weights it returns may lack what scales its output afterwards (the sinks of Granite SWA).
            each = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*key.shape[:3], -1)
            self.weights[index] = eager(layer, query, key, each, mask, **kwargs)[0].transpose(1, 2)
            return output, self.weights[index]
        weights = self.reused(index)
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (weights @ values).transpose(1, 2).contiguous(), weights

    def reused(self, index: int) -> Tensor:
        """The attention weights that follower `index` uses."""
        return self.weights[self.source_layers[index]]

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        def attend(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
            module, query, key, value, mask = (*args, attention_mask)[:5]  # it comes by position or, in some, by name
            return self.attend(module, query, key, value, mask, **kwargs)

        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, eager_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        try:
            with torch.no_grad():
                yield
        finally:
            model.set_attn_implementation(before)


def _eager(layer: nn.Module) -> Any:
    return sys.modules[type(layer).__module__].eager_attention_forward
