"""Keep the weights that healing trains, apart from the model, whose own parameters never change: it is the teacher.

weights = TrainedWeights(model, parts, rank=None)        # copies, trained in full or as low-rank differences
weights.current()                                        # the student's parameters
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BadInput
from .parts import Part

LORA_SCALE = 2.0  # multiplies low-rank differences; with AdamW, it does little more than the learning rate

Stored = Callable[[Part, Tensor], Tensor]  # from values in float32 to the values that a file stores of them


class TrainedWeights:
    """The trained parts in float32, by the name of the parameter. `leaves` are the tensors that the optimizer changes.

    `initial` are values to start with where they are not the model's; a parameter that is not trained, or a wrong
    shape, raises BadInput. `stored` rounds values as the output will; gradients must pass through it. With a rank, a
    matrix is its value at the start plus LORA_SCALE B A, where B is zero at the start (LoRA, arXiv:2106.09685); biases
    are trained in full.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Iterable[Part],
        rank: int | None = None,
        initial: Mapping[str, npt.NDArray[np.floating]] | None = None,
        seed: int = 0,
        stored: Stored = lambda part, values: values,
    ) -> None:
        self.parts = {part.name: part for part in parts}
        self.stored = stored
        self._originals = {name: model.get_parameter(name) for name in self.parts}
        start = {name: self.parts[name].of(weight).detach().float().clone() for name, weight in self._originals.items()}
        for name, values in (initial or {}).items():
            if name not in start or start[name].shape != values.shape:
                reason = f"no trained parameter of shape {list(values.shape)}"
                raise BadInput(reason, field=f"initial weights: '{name}'")
            start[name] = torch.from_numpy(np.array(values, np.float32)).to(start[name].device)
        generator = torch.Generator().manual_seed(seed)  # on the CPU: a seed gives the same numbers on every device
        self._base: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        for name, weight in start.items():
            if rank is None or weight.ndim != 2:
                self.leaves[name] = weight
                continue
            n_out, n_in = weight.shape
            down = torch.randn(rank, n_in, generator=generator) / n_in**0.5
            self._base[name] = weight
            self.leaves[f"{name}.A"] = down.to(weight.device)
            self.leaves[f"{name}.B"] = torch.zeros(n_out, rank, device=weight.device)
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def trained(self) -> dict[str, Tensor]:
        """Return what is trained of each parameter, in float32; gradients pass through to the leaves."""
        return {name: self._value(name) for name in self.parts}

    def current(self) -> dict[str, Tensor]:
        """Return the student's whole parameters in float32; gradients pass through to the leaves."""
        return {name: self.parts[name].put(value, self._originals[name]) for name, value in self.trained().items()}

    def cast(self) -> dict[str, Tensor]:
        """Return the whole parameters that the student computes with: rounded by `stored`, in the model's types."""
        return {
            name: part.put(self.stored(part, self._value(name)), self._originals[name]).to(self._originals[name].dtype)
            for name, part in self.parts.items()
        }

    def _value(self, name: str) -> Tensor:
        if name not in self._base:
            return self.leaves[name]
        return self._base[name] + LORA_SCALE * (self.leaves[f"{name}.B"] @ self.leaves[f"{name}.A"])

    @property
    def n_trained(self) -> int:
        """How many numbers the optimizer changes."""
        return sum(leaf.numel() for leaf in self.leaves.values())
