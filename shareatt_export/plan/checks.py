"""Check that a dense model can share attention in some spans: its heads, its layers and the tensors of each."""

from ..errors import BadInput, Unsupported, damaged
from ..formats.gguf_header import Header
from ..model.architectures import Architecture, split_tensor_name
from ..model.facts import Facts
from ..model.spans import Span


def check_heads(dense: Header, facts: Facts, span: Span) -> None:
    """Check that the layers of a span have attention heads, in equal numbers.

    Raises Unsupported for layers without heads or that predict further tokens, BadInput for different numbers.
    """
    field, next_step = f"span '{span}'", "choose other layers"
    source_heads = facts.n_head[span.source], facts.n_head_kv[span.source]
    if min(*source_heads, facts.head_dim_k, facts.head_dim_v) < 1:
        reason = f"layer {span.source} has no attention heads"
        raise Unsupported(reason, path=dense.path, field=field, next_step=next_step)
    if span.followers[-1] >= (n_layer := facts.n_layer - facts.n_layer_nextn):
        reason = f"layers from {n_layer} on predict further tokens"
        raise Unsupported(reason, path=dense.path, field=field, next_step=next_step)
    for layer in span.followers:
        follower_heads = facts.n_head[layer], facts.n_head_kv[layer]
        if follower_heads != source_heads:
            reason = (
                f"layer {layer} has {follower_heads[0]} query and {follower_heads[1]} KV heads, "
                f"its source has {source_heads[0]} and {source_heads[1]}"
            )
            raise BadInput(reason, path=dense.path, field=field, next_step=next_step)


def check_layers(dense: Header, facts: Facts) -> None:
    """Check that the file has tensors of each layer, and of no other layer. Raises BadInput.

    Layers that predict further tokens may be missing; some files leave them out.
    """
    found = {layer for name in dense.tensors if (layer := split_tensor_name(name)[0]) is not None}
    missing = set(range(facts.n_layer - facts.n_layer_nextn)) - found
    further = found - set(range(facts.n_layer))
    if missing or further:
        found_instead = f"is no tensor of layer {min(missing)}" if missing else f"are tensors of layer {min(further)}"
        raise damaged(dense.path, f"{facts.arch}.block_count", f"{facts.n_layer}, but there {found_instead}")


def check_inventory(dense: Header, facts: Facts, arch: Architecture, spans: tuple[Span, ...]) -> None:
    """Check that each layer of a span has the Q, K and V tensors of its architecture. Raises BadInput."""
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
