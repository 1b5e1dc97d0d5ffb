"""Choose what healing trains: V and O of followers, Q and K of sources, optionally their MLPs.

parts = trained_parts(model, roles_of(spans))     # parameters of the model, or some rows of them
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import Unsupported
from ..model.spans import Span


@dataclass(frozen=True)
class Part:
    """A parameter to train, or with `rows` only these rows of it. `role` is "q", "k", "v", "o", "qk" or "mlp"."""

    name: str
    role: str
    rows: tuple[int, ...] | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """Return what is trained of the parameter."""
        return parameter if self.rows is None else parameter[torch.tensor(self.rows, device=parameter.device)]

    def put(self, values: Tensor, parameter: Tensor) -> Tensor:
        """Return the parameter with other values of what is trained; gradients pass through to `values`."""
        if self.rows is None:
            return values
        return parameter.to(values.dtype).index_copy(0, torch.tensor(self.rows, device=values.device), values)


@dataclass(frozen=True)
class Projections:
    """The names of the projections within the attention modules of a model family.

    In a family with one matrix for all three, `q`, `k` and `v` are its name. Its rows are those of Q, then of K, then
    of V; if they are `interleaved`, they are so for each head.
    """

    q: str
    k: str
    v: str
    o: str
    interleaved: bool = False

    @property
    def fused(self) -> bool:
        """Whether Q, K and V are one matrix."""
        return self.q == self.v


KNOWN = (
    Projections("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, gpt-oss and most others
    Projections("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    Projections("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
    Projections("qkv_proj", "qkv_proj", "qkv_proj", "o_proj"),  # Phi-3
    Projections("query_key_value", "query_key_value", "query_key_value", "dense", interleaved=True),  # GPT-NeoX
)
FUSED = ("c_attn", "Wqkv")  # GPT-2, DBRX: one matrix, in an order that KNOWN cannot describe


def attention_modules(model: PreTrainedModel) -> dict[int, tuple[str, nn.Module, Projections]]:
    """Return by layer the attention module, after its name in the model and before the names of its projections.

    Raises Unsupported if Q, K and V are one matrix of an order that is not known.
    """
    found: dict[int, tuple[str, nn.Module, Projections]] = {}
    kind = type(model).__name__
    for name, module in model.named_modules():
        children = {child for child, _ in module.named_children()}
        if fused := [child for child in FUSED if child in children]:
            reason = f"Q, K and V are one matrix ({name}.{fused[0]}), which heal cannot train in part"
            raise Unsupported(reason, field=kind)
        for known in KNOWN:
            if {known.q, known.k, known.v, known.o} <= children and isinstance(module.layer_idx, int):
                found.setdefault(module.layer_idx, (name, module, known))
    return found


Roles = Mapping[int, tuple[str, ...]]  # by layer: "qk", "vo", or both


def roles_of(spans: Iterable[Span]) -> Roles:
    """Return what is trained where whole layers share: Q and K of sources, V and O of followers."""
    found: dict[int, tuple[str, ...]] = {}
    for span in spans:
        found |= {span.source: ("qk",), **dict.fromkeys(span.followers, ("vo",))}
    return found


def trained_parts(model: PreTrainedModel, roles: Roles, train_mlp: bool = False) -> tuple[Part, ...]:
    """Return what to train, layer by layer.

    Raises Unsupported, without a path, if the model's projections are not floating-point matrices.
    """
    attention = attention_modules(model)
    parts: list[Part] = []
    for layer, of_layer in roles.items():
        if layer not in attention:
            reason = f"layer {layer} has no Q, K, V and O projection that heal knows"
            raise Unsupported(reason, field=type(model).__name__)
        prefix, module, known = attention[layer]
        if known.fused and len(of_layer) > 1:
            reason = f"Q, K and V of layer {layer} are one matrix, of which single KV groups cannot be trained"
            raise Unsupported(reason, field=type(model).__name__)
        for role, projection, which in (part for pair in of_layer for part in _chosen(model.config, known, pair)):
            names = _parameter_names(module.get_submodule(projection), f"{prefix}.{projection}")
            parts += [Part(name, role, which) for name in names]
        if train_mlp:
            parts += [Part(name, "mlp") for name in _mlp_names(model, prefix, layer)]
    return tuple(parts)


Chosen = list[tuple[str, str, tuple[int, ...] | None]]  # the role of a part, its projection and the rows of that


def _chosen(config: Any, known: Projections, role: str) -> Chosen:
    if not known.fused:
        pair = ((known.q, "q"), (known.k, "k")) if role == "qk" else ((known.v, "v"), (known.o, "o"))
        return [(name, projection, None) for projection, name in pair]
    rows = fused_rows(config, known.interleaved)
    return (
        [("qk", known.q, rows["q"] + rows["k"])] if role == "qk" else [("v", known.v, rows["v"]), ("o", known.o, None)]
    )


def fused_rows(config: Any, interleaved: bool) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the rows of "q", "k" and "v" in a fused matrix, head by head."""
    n_head = config.num_attention_heads
    n_head_kv = getattr(config, "num_key_value_heads", None) or n_head
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_head
    if interleaved:
        blocks = torch.arange(3 * n_head * head_dim).reshape(n_head, 3, head_dim)
        return {name: tuple(blocks[:, i].flatten().tolist()) for i, name in enumerate("qkv")}
    sizes = [n * head_dim for n in (n_head, n_head_kv, n_head_kv)]
    split = torch.split(torch.arange(sum(sizes)), sizes)
    return {name: tuple(rows.tolist()) for name, rows in zip("qkv", split, strict=True)}


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
