"""What healing trains: the followers' V and O projections, their source's Q and K, and if wanted the spans' MLPs.

    names = trained_names(model, spans, train_mlp=False)     # parameters of the model
    weights = Weights(model, names, rank=None)               # their copies, in full or as low-rank differences
    weights.current()                                        # what the student has for them now

The model's own parameters are never written, so it stays the teacher.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BadInput, Unsupported
from ..model.spans import Span

LORA_SCALE = 2.0  # of a low-rank difference; with AdamW little more than a learning rate


@dataclass(frozen=True)
class ProjectionNames:
    """What a family calls them, as children of its attention module."""

    q: str
    k: str
    v: str
    o: str


KNOWN = (
    ProjectionNames(
        "q_proj", "k_proj", "v_proj", "o_proj"
    ),  # Llama, Mistral, Qwen, Gemma, OLMo, gpt-oss and most others
    ProjectionNames("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ProjectionNames("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
)
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")  # Phi-3, GPT-NeoX, GPT-2, DBRX


def attention_modules(model: PreTrainedModel) -> dict[int, tuple[str, nn.Module, ProjectionNames]]:
    """By layer: the attention module and its name. Raises Unsupported where Q, K, V and O are not matrices apart."""
    found: dict[int, tuple[str, nn.Module, ProjectionNames]] = {}
    kind = type(model).__name__
    for name, module in model.named_modules():
        children = {child for child, _ in module.named_children()}
        if fused := [child for child in FUSED if child in children]:
            raise Unsupported(f"{kind}: Q, K and V are one matrix ({name}.{fused[0]}), which heal cannot train in part")
        for names in KNOWN:
            if {names.q, names.k, names.v, names.o} <= children and isinstance(module.layer_idx, int):
                found.setdefault(module.layer_idx, (name, module, names))
    return found


def trained_names(model: PreTrainedModel, spans: Iterable[Span], train_mlp: bool = False) -> tuple[str, ...]:
    """Names of parameters, layer by layer. Raises Unsupported."""
    attention = attention_modules(model)
    names: list[str] = []
    for span in spans:
        for layer in (span.source, *span.followers):
            if layer not in attention:
                raise Unsupported(
                    f"{type(model).__name__}: layer {layer} has no Q, K, V and O projection that heal knows"
                )
            prefix, module, known = attention[layer]
            for child in (known.q, known.k) if layer == span.source else (known.v, known.o):
                names += _of_linear(module.get_submodule(child), f"{prefix}.{child}")
            if train_mlp:
                names += _mlp(model, prefix, layer)
    return tuple(names)


def _mlp(model: PreTrainedModel, attention: str, layer: int) -> list[str]:
    """Every matrix of the layer outside of its attention."""
    parent, _, own = attention.rpartition(".")
    names: list[str] = []
    for name, module in model.get_submodule(parent).named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(f"{own}."):
            names += _of_linear(module, f"{parent}.{name}")
    if not names:
        raise Unsupported(f"{type(model).__name__}: layer {layer} has no MLP that heal knows; leave --train-mlp away")
    return names


def _of_linear(module: nn.Module, name: str) -> list[str]:
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        raise Unsupported(f"{name}: is a {type(module).__name__}, not a matrix of floating-point numbers")
    return [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]


class TrainedWeights:
    """Trained parameters, in float32. `leaves` is what the optimizer changes.

    `stored` are the types that they will be written in. With a rank, a matrix is what it was plus B A, of which B
    begins as zero (LoRA); biases are trained in full.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        names: Iterable[str],
        rank: int | None = None,
        initial: Mapping[str, npt.NDArray[np.floating]] | None = None,
        seed: int = 0,
        stored: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        originals = {name: model.get_parameter(name) for name in names}
        start = {name: weight.detach().float().clone() for name, weight in originals.items()}
        for name, values in (initial or {}).items():
            if name not in start or start[name].shape != values.shape:
                raise BadInput(f"initial weights: '{name}': no trained parameter of shape {list(values.shape)}")
            start[name] = torch.from_numpy(np.array(values, np.float32)).to(start[name].device)
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that a seed means the same everywhere
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
        self._dtypes = {name: weight.dtype for name, weight in originals.items()}
        self._stored = stored or {}

    def current(self) -> dict[str, Tensor]:
        """In float32, through which gradients reach the leaves."""
        return {name: self._value(name) for name in self._dtypes}

    def cast(self) -> dict[str, Tensor]:
        """What the student computes with: rounded as they will be stored, in the type of the model."""
        return {
            name: value.to(self._stored.get(name, value.dtype)).to(self._dtypes[name])
            for name, value in self.current().items()
        }

    def _value(self, name: str) -> Tensor:
        if name not in self._base:
            return self.leaves[name]
        return self._base[name] + LORA_SCALE * (self.leaves[f"{name}.B"] @ self.leaves[f"{name}.A"])

    @property
    def n_trained(self) -> int:
        return sum(leaf.numel() for leaf in self.leaves.values())
