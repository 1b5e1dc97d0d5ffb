"""Whether a dense model can share attention in some spans: its heads, its layers and the tensors of each."""

from ..errors import BadInput, Unsupported, damaged
from ..formats.gguf_header import Header
from ..model.architectures import Architecture, split_tensor_name
from ..model.facts import Facts
from ..model.spans import Span


def check_heads(dense: Header, facts: Facts, span: Span) -> None:
    theirs = facts.n_head[span.source], facts.n_head_kv[span.source]
    if min(*theirs, facts.head_dim_k, facts.head_dim_v) < 1:
        raise Unsupported(
            f"{dense.path}: span '{span}': layer {span.source} has no attention heads; choose other layers"
        )
    if span.followers[-1] >= (n_layer := facts.n_layer - facts.n_layer_nextn):
        raise Unsupported(
            f"{dense.path}: span '{span}': layers from {n_layer} on predict further tokens; choose other layers"
        )
    for layer in span.followers:
        ours = facts.n_head[layer], facts.n_head_kv[layer]
        if ours != theirs:
            raise BadInput(
                f"{dense.path}: span '{span}': layer {layer} has {ours[0]} query and {ours[1]} KV heads, "
                f"its source has {theirs[0]} and {theirs[1]}; choose other layers"
            )


def check_layers(dense: Header, facts: Facts) -> None:
    """There must be tensors of each layer, and of no other. Some files leave those away that predict further tokens."""
    found = {layer for name in dense.tensors if (layer := split_tensor_name(name)[0]) is not None}
    missing = set(range(facts.n_layer - facts.n_layer_nextn)) - found
    further = found - set(range(facts.n_layer))
    if missing or further:
        what = f"no tensor is of layer {min(missing)}" if missing else f"tensors are of layer {min(further)} too"
        raise damaged(dense.path, f"{facts.arch}.block_count", f"{facts.n_layer}, but {what}")


def check_inventory(dense: Header, facts: Facts, arch: Architecture, spans: tuple[Span, ...]) -> None:
    """Each layer of a span must have the Q, K and V that its architecture promises."""
    for span in spans:
        for layer in (span.source, *span.followers):
            fused = f"blk.{layer}.{arch.fused_qkv}.weight"
            if fused in dense.tensors:
                continue
            rows = {"attn_q": facts.n_embd_q(layer), "attn_k": facts.n_embd_k(layer), arch.v: facts.n_embd_v(layer)}
            for role, n in rows.items():
                info = dense.tensors.get(name := f"blk.{layer}.{role}.weight")
                if info and info.shape[-1] != n:
                    raise damaged(dense.path, f"tensor '{name}'", f"{info.shape[-1]} rows, expected {n}")
                if not info:
                    raise damaged(dense.path, f"tensor '{name}'", f"is missing, but layer {layer} is in span '{span}'")
