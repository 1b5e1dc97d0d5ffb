"""Encode what healing trains in the types of a GGUF's tensors, and let the student compute with what they decode to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from ..formats.tensor_copies import FloatRows, RawRows, float_rows
from ..llamacpp.encode import encoded_rows
from .parts import Part


@dataclass(frozen=True)
class Encoding:
    """Called with a part and its values in float32, it returns the values that the file will store of them.

    Gradients pass through as if nothing were rounded (the straight-through estimator, arXiv:1308.3432).
    `types` and `importance` are by the name of the parameter; a bias has no importance. `bin` is the folder of the
    runtime's libraries. Raises Unsupported, about the file `path`, where a row is not a whole number of blocks.
    """

    bin: Path
    path: Path
    types: Mapping[str, GGMLQuantizationType]
    importance: Mapping[str, FloatRows]

    def raw(self, part: Part, values: Tensor) -> RawRows:
        """Return the encoded rows in the order of `values`; a bias is one row."""
        rows = values.detach().cpu().reshape(-1, values.shape[-1]).numpy()
        importance = self.importance.get(part.name)
        return encoded_rows(self.bin, rows, self.types[part.name], importance, self.path)

    def __call__(self, part: Part, values: Tensor) -> Tensor:
        decoded = float_rows(self.raw(part, values), self.types[part.name]).reshape(tuple(values.shape))
        return values + (torch.from_numpy(decoded).to(values.device) - values).detach()
