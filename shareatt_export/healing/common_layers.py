"""The layers before the first one that shares: teacher and student compute the same there, so once is enough.

common = CommonLayers(model, first=24)
with common.recorded(tokens):
    model(tokens)                   # the teacher
with common.skipped(tokens):
    model(tokens)                   # the student, from layer 24 on
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .parts import attention_modules


class CommonLayers:
    """The layers of a model before layer `first`, and what the last of them returned for the tokens seen last."""

    def __init__(self, model: PreTrainedModel, first: int) -> None:
        layer, _, _ = attention_modules(model)[first][0].rpartition(".")
        layers = model.get_submodule(layer.rpartition(".")[0])
        self._layers = list(layers.children())[:first]
        self._tokens: Tensor | None = None
        self._output: Any = None

    @contextmanager
    def recorded(self, tokens: Tensor) -> Iterator[None]:
        """Keep what the model computes for the tokens within the block."""
        if not self._layers:
            yield
            return

        def keep(module: nn.Module, inputs: object, output: object) -> None:
            self._output = output

        hook = self._layers[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()
        self._tokens = tokens

    @contextmanager
    def skipped(self, tokens: Tensor) -> Iterator[None]:
        """Let the layers return what was recorded within the block, if it was recorded for these tokens."""
        known = self._tokens is not None and torch.equal(tokens, self._tokens)
        for layer in self._layers if known else ():
            layer.forward = lambda *arguments, **options: self._output
        try:
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)
