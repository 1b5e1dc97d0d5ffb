"""Choose and keep the weights that healing trains: V and O of followers, Q and K of sources, optionally their MLPs.

    names = trained_names(model, spans, train_mlp=False)     # names of the model's parameters
    weights = TrainedWeights(model, names, rank=None)        # copies, trained in full or as low-rank differences
    weights.current()                                        # the student's parameters

The model's own parameters never change, because the model is the teacher, too.
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

LORA_SCALE = 2.0  # multiplies low-rank differences; with AdamW, it does little more than the learning rate


@dataclass(frozen=True)
class ProjectionNames:
    """The names of the four projections within the attention modules of a model family."""

    q: str
    k: str
    v: str
    o: str


KNOWN_NAMES = (
    ProjectionNames("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, gpt-oss and most others
    ProjectionNames("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ProjectionNames("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
)
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")  # Phi-3, GPT-NeoX, GPT-2, DBRX


def attention_modules(model: PreTrainedModel) -> dict[int, tuple[str, nn.Module, ProjectionNames]]:
    """Return by layer the attention module, after its name in the model and before the names of its projections.

    Raises Unsupported if Q, K and V are one matrix.
    """
    found: dict[int, tuple[str, nn.Module, ProjectionNames]] = {}
    kind = type(model).__name__
    for name, module in model.named_modules():
        children = {child for child, _ in module.named_children()}
        if fused := [child for child in FUSED if child in children]:
            reason = f"Q, K and V are one matrix ({name}.{fused[0]}), which heal cannot train in part"
            raise Unsupported(reason, field=kind)
        for names in KNOWN_NAMES:
            if {names.q, names.k, names.v, names.o} <= children and isinstance(module.layer_idx, int):
                found.setdefault(module.layer_idx, (name, module, names))
    return found


def trained_names(model: PreTrainedModel, spans: Iterable[Span], train_mlp: bool = False) -> tuple[str, ...]:
    """Return the names of the parameters to train, layer by layer.

    Raises Unsupported, without a path, if the model's projections are not separate floating-point matrices.
    """
    attention = attention_modules(model)
    names: list[str] = []
    for span in spans:
        for layer in (span.source, *span.followers):
            if layer not in attention:
                reason = f"layer {layer} has no Q, K, V and O projection that heal knows"
                raise Unsupported(reason, field=type(model).__name__)
            prefix, module, known = attention[layer]
            for projection in (known.q, known.k) if layer == span.source else (known.v, known.o):
                names += _parameter_names(module.get_submodule(projection), f"{prefix}.{projection}")
            if train_mlp:
                names += _mlp_names(model, prefix, layer)
    return tuple(names)


def _mlp_names(model: PreTrainedModel, attention: str, layer: int) -> list[str]:
    """Return the parameters of every matrix of the layer outside its attention module, which is called `attention`."""
    parent, _, attention_child = attention.rpartition(".")
    names: list[str] = []
    for name, module in model.get_submodule(parent).named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(f"{attention_child}."):
            names += _parameter_names(module, f"{parent}.{name}")
    if not names:
        reason = f"layer {layer} has no MLP that heal knows"
        raise Unsupported(reason, field=type(model).__name__, next_step="leave out --train-mlp")
    return names


def _parameter_names(module: nn.Module, name: str) -> list[str]:
    """Return the names of the weight and the bias, if any, of a matrix that is called `name`."""
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        raise Unsupported(f"is a {type(module).__name__}, not a matrix of floating-point numbers", field=name)
    return [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]


class TrainedWeights:
    """The trained parameters in float32, by name. `leaves` are the tensors that the optimizer changes.

    `initial` are values to start with where they are not the model's; a parameter that is not trained, or a wrong
    shape, raises BadInput. `stored` are the types of the parameters in the checkpoint. With a rank, a matrix is its
    value at the start plus LORA_SCALE B A, where B is zero at the start (LoRA, arXiv:2106.09685); biases are trained
    in full.
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
        self._dtypes = {name: weight.dtype for name, weight in originals.items()}
        self._stored = stored or {}

    def current(self) -> dict[str, Tensor]:
        """Return the student's parameters in float32; gradients pass through them to the leaves."""
        return {name: self._value(name) for name in self._dtypes}

    def cast(self) -> dict[str, Tensor]:
        """Return the parameters that the student computes with: rounded to `stored`, in the types of the model."""
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
        """How many numbers the optimizer changes."""
        return sum(leaf.numel() for leaf in self.leaves.values())
