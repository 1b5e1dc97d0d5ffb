"""Shared Attention in transformers, for any architecture, with gradients: the one implementation in torch.

    with Sharing(source_layers).active(model):
        model(input_ids).logits.sum().backward()

One function registered with transformers' attention interface does it, so no model file is copied: a source layer
runs its architecture's own eager attention (soft caps, sinks and all) and leaves its weights, a follower multiplies
them with its own V. What the follower's Q and K projections compute is thrown away.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_layers import GradientCheckpointingLayer

NAME = "shareatt_reference"


class Sharing:
    """`weights` holds the attention weights of each source layer in the last forward, [n_batch, n_head, n_q, n_kv]."""

    def __init__(self, source_layers: tuple[int, ...]) -> None:
        self.source_layers = source_layers
        self.weights: dict[int, Tensor] = {}
        self.met: set[int] = set()  # layers whose attention came through here
        self._complete: dict[int, bool] = {}

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """query [n_batch, n_head, n_q, head_dim], key and value [n_batch, n_head_kv, n_kv, head_dim]."""
        index = layer.layer_idx
        assert isinstance(index, int)  # noqa: S101  (every attention module of transformers has one)
        self.met.add(index)
        if self.source_layers[index] == index:
            eager = _eager(layer)
            output, weights = eager(layer, query, key, value, mask, **kwargs)
            if self.source_layers.count(index) > 1:
                self.weights[index] = weights = self._whole(layer, weights, output, query, key, value, mask, **kwargs)
            return output, weights
        weights = self.reused(index)
        return _product(weights, value), weights

    def reused(self, index: int) -> Tensor:
        """The attention weights that follower `index` uses."""
        return self.weights[self.source_layers[index]]

    def _whole(
        self,
        layer: nn.Module,
        weights: Tensor,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """What the layer does to its V. The weights it returns may lack what scales its output afterwards (the sinks
        of Granite SWA); then V is replaced by the unit matrix, which costs far more. The first forward decides."""
        index = int(layer.layer_idx)  # type: ignore[arg-type]
        if index not in self._complete:
            with torch.no_grad():  # a layer that is computed again for its gradients has to do the same again
                self._complete[index] = torch.equal(_product(weights, value), output)
        if self._complete[index]:
            return weights
        each = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*key.shape[:3], -1)
        whole: Tensor = _eager(layer)(layer, query, key, each, mask, **kwargs)[0].transpose(1, 2)
        return whole

    @contextmanager
    def active(self, model: PreTrainedModel) -> Iterator[None]:
        """Within the block, backward included, where layers are checkpointed: they are computed again then."""

        def attend(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
            module, query, key, value, mask = (*args, attention_mask)[:5]  # it comes by position or, in some, by name
            return self.attend(module, query, key, value, mask, **kwargs)

        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, eager_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            model.set_attn_implementation(before)
            self.weights.clear()


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Each layer keeps only its inputs, and is computed again for the backward pass, which must be within the block.

    The attention weights of a source leave its layer beside its output. Sharing holds on to them, so a follower that
    is computed again finds those of the first time, through which its gradient reaches the source.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(weights: Tensor, value: Tensor) -> Tensor:
    values = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    return (weights @ values).transpose(1, 2).contiguous()


def _eager(layer: nn.Module) -> Any:
    return sys.modules[type(layer).__module__].eager_attention_forward
