"""Shared Attention in transformers, for any architecture, as the reference that the runtime is held against.

with SharedReference(source_layers).on(model):
    logits = model(input_ids).logits
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from shareatt_export.healing.sharing import Sharing


class SharedReference(Sharing):
    """Sharing for inference. Tests make it wrong in one thing or another."""

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        with self.active(model), torch.no_grad():
            yield
