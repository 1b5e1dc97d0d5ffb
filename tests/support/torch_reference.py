"""Shared Attention in transformers, for any architecture: the reference that the runtime is compared with.

with SharedReference(source_layers).on(model):
    logits = model(input_ids).logits
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from shareatt_export.healing.sharing import Sharing


class SharedReference(Sharing):
    """Shared Attention for inference. wrong_references.py derives references with one mistake each from it."""

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the attention of `model` share in the block, without gradients."""
        with self.active(model), torch.no_grad():
            yield
