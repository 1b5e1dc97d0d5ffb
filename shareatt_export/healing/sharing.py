"""Shared Attention in transformers, for any architecture, with gradients: the only implementation in torch.

    with Sharing(source_layers).active(model):
        model(input_ids).logits.sum().backward()

It is one function that is registered with transformers' attention interface, so no model file is copied. A source
layer runs its architecture's own eager attention (with soft caps and sinks) and keeps its attention weights; a follower
multiplies them with its own V. The outputs of the follower's Q and K projections are not used.
"""

from __future__ import annotations  # docs/conf.py imports this module with a stand-in for torch, which knows no `|`

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

from ..model.attention_map import AttentionMap, Group, following

NAME = "shareatt_reference"


class Sharing:
    """The attention of a model with a source map.

    `weights` holds the attention weights of each source layer in the last forward pass, [n_batch, n_head, n_q, n_kv].
    `reached` are the layers that called attend(): a model whose layers do not cannot share attention this way.
    """

    def __init__(self, source_layers: tuple[int, ...]) -> None:
        self.source_layers = source_layers
        self.weights: dict[int, Tensor] = {}
        self.reached: set[int] = set()
        self._weights_are_complete: dict[int, bool] = {}  # by source layer, see _complete_weights

    @property
    def needed(self) -> set[int]:
        """The layers that share: sources and followers."""
        return {each for layer, source in enumerate(self.source_layers) if source != layer for each in (source, layer)}

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the attention output [n_batch, n_q, n_head, head_dim] and the attention weights.

        query [n_batch, n_head, n_q, head_dim], key and value [n_batch, n_head_kv, n_kv, head_dim].
        """
        index = layer.layer_idx
        assert isinstance(index, int)  # noqa: S101  (every attention module of transformers has one)
        self.reached.add(index)
        if self.source_layers[index] == index:
            eager = _eager(layer)
            output, weights = eager(layer, query, key, value, mask, **kwargs)
            if self.source_layers.count(index) > 1:
                weights = self._complete_weights(layer, weights, output, query, key, value, mask, **kwargs)
                self.weights[index] = weights
            return output, weights
        weights = self.reused(index)
        return _product(weights, value), weights

    def reused(self, index: int) -> Tensor:
        """Return the attention weights that follower `index` uses."""
        return self.weights[self.source_layers[index]]

    def _complete_weights(
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
        """Return the matrix that the layer multiplies V with.

        In some architectures the layer scales its output afterwards (the sinks of Granite SWA), so that the weights
        that it returns are not that matrix. Then attention with the unit matrix as V gives the matrix, which takes far
        longer.
        """
        index = int(layer.layer_idx)  # type: ignore[arg-type]
        if index not in self._weights_are_complete:  # decided once: a checkpointed layer must compute the same again
            with torch.no_grad():
                self._weights_are_complete[index] = torch.equal(_product(weights, value), output)
        if self._weights_are_complete[index]:
            return weights
        identity = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*key.shape[:3], -1)
        complete: Tensor = _eager(layer)(layer, query, key, identity, mask, **kwargs)[0].transpose(1, 2)
        return complete

    @contextmanager
    def active(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the model share attention within the block; the backward pass belongs inside if layers are checkpointed.

        `weights` is empty after the block.
        """

        def attend(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
            module, query, key, value, mask = (*args, attention_mask)[:5]  # some architectures pass the mask by name
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


class GroupSharing(Sharing):
    """The attention of a model with an attention map: its KV groups compute weights, follow heads, or are dropped."""

    def __init__(self, attention: AttentionMap) -> None:
        super().__init__(tuple(range(attention.n_layer)))
        self.attention = attention
        self._sources = {source for _, source in following(attention)}

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As Sharing.attend(), but the weights that it returns are those of heads that compute their own."""
        index = layer.layer_idx
        assert isinstance(index, int)  # noqa: S101  (every attention module of transformers has one)
        self.reached.add(index)
        output, weights = _eager(layer)(layer, query, key, value, mask, **kwargs)
        if index in self._sources:
            weights = self._complete_weights(layer, weights, output, query, key, value, mask, **kwargs)
            self.weights[index] = weights
        if index in self.attention.touched:
            output = output.clone()
            for group in self.attention.groups(index):
                if self.attention.action(group) != "own":
                    heads = self.attention.heads(group)
                    output[:, :, heads.start : heads.stop] = self.of_group(group, value)
        return output, weights

    @property
    def needed(self) -> set[int]:
        return {*self.attention.touched, *self._sources}

    def of_group(self, group: Group, value: Tensor) -> Tensor | float:
        """Return the output of a group that follows, [n_batch, n_q, n_rep, head_dim], or 0 for one that is dropped."""
        if self.attention.action(group) == "drop":
            return 0.0
        places = [divmod(source, self.attention.stride) for source in self.attention.of(group)]
        weights = torch.stack([self.weights[layer][:, head] for layer, head in places], dim=1)
        return _product(weights, value[:, group.number : group.number + 1])


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Let each layer keep only its inputs within the block, and compute the layer again for the backward pass.

    The backward pass must be inside the block. Sharing keeps the attention weights of the first forward pass, so a
    follower that is computed again uses them, and its gradient reaches the source layer through them.
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
    """Return weights times value, [n_batch, n_q, n_head, head_dim]."""
    values = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    return (weights @ values).transpose(1, 2).contiguous()


def _eager(layer: nn.Module) -> Any:
    """Return the eager attention function of the layer's architecture."""
    return sys.modules[type(layer).__module__].eager_attention_forward
