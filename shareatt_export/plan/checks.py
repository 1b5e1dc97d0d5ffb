"""Check that a dense model can have an attention map: its heads, its layers and the tensors of each."""

from collections.abc import Sequence

from ..errors import BadInput, BadSpans, Unsupported, damaged
from ..formats.gguf_header import Header
from ..model.architectures import Architecture, split_tensor_name
from ..model.attention_map import AttentionMap, check, following
from ..model.facts import Facts


def new_layers(dense: Header, facts: Facts, attention: AttentionMap, fits: bool) -> list[int]:
    """Return the layers that change.

    Raises Unsupported if the model shares already and is to be fitted, if single groups share before or after, or if
    nothing changes; BadSpans if its own spans would change.
    """
    if facts.is_shared:
        if fits or attention.source_layers is None or facts.attention.source_layers is None:
            next_step = "fit the dense model, with all spans at once" if fits else "begin with the dense model"
            raise Unsupported("shares attention already", path=dense.path, next_step=next_step)
        for layer in facts.attention.touched:
            if attention.sources[layer] != facts.attention.sources[layer]:
                raise BadSpans("would change what the model shares already", path=dense.path, field=f"layer {layer}")
    new = [layer for layer in attention.touched if attention.sources[layer] != facts.attention.sources[layer]]
    if not new:
        raise Unsupported("no layer of the map has attention heads", path=dense.path, next_step="choose other layers")
    return new


def check_map(dense: Header, facts: Facts, arch: Architecture, attention: AttentionMap, new: Sequence[int]) -> None:
    """Check the rules of the map, and that the layers have heads that can follow it.

    Raises BadSpans or BadInput where the map does not fit the model, Unsupported where the model cannot share.
    """
    check_heads(dense, facts, attention, new)
    check(attention)
    for group, source in following(attention):
        if facts.is_swa[group.layer] != facts.is_swa[source]:
            reason = f"only one of the layers {source} and {group.layer} has a sliding window"
            raise BadSpans(reason, field=f"map: group {group}")
    partial = [layer for layer in new if attention.source_of_layer(layer) is None]
    if arch.layers_only and partial:
        reason = f"'{facts.arch}' shares whole layers only: {arch.layers_only}"
        raise Unsupported(reason, path=dense.path, field=f"layer {partial[0]}", next_step="share whole layers")


def check_heads(dense: Header, facts: Facts, attention: AttentionMap, new: Sequence[int]) -> None:
    """Check that these layers and their sources have attention heads, in equal numbers.

    Raises Unsupported for layers without heads or that predict further tokens, BadInput for different numbers.
    """
    for layer in new:
        sources = {source // attention.stride for source in attention.sources[layer] if source >= 0} or {layer}
        for source in sorted({layer, *sources}):
            _check_layer_heads(dense, facts, source)
        if layer >= (n_layer := facts.n_layer - facts.n_layer_nextn):
            raise Unsupported(
                f"predicts further tokens, as all from {n_layer} on", path=dense.path, field=f"layer {layer}",
                next_step="choose other layers",
            )  # fmt: skip
        heads = facts.n_head[layer], facts.n_head_kv[layer]
        for source in sources:
            if heads != (of_source := (facts.n_head[source], facts.n_head_kv[source])):
                reason = (
                    f"has {heads[0]} query and {heads[1]} KV heads, its source has {of_source[0]} and {of_source[1]}"
                )
                raise BadInput(reason, path=dense.path, field=f"layer {layer}", next_step="choose other layers")


def _check_layer_heads(dense: Header, facts: Facts, layer: int) -> None:
    if min(facts.n_head[layer], facts.n_head_kv[layer], facts.head_dim_k, facts.head_dim_v) < 1:
        raise Unsupported(
            "has no attention heads", path=dense.path, field=f"layer {layer}", next_step="choose other layers"
        )


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


def check_inventory(
    dense: Header, facts: Facts, arch: Architecture, attention: AttentionMap, new: Sequence[int]
) -> None:
    """Check that these layers and their sources have the Q, K and V tensors of their architecture. Raises BadInput."""
    sources = {source for group, source in following(attention) if group.layer in new}
    for layer in sorted({*new, *sources}):
        if f"blk.{layer}.{arch.fused_qkv}.weight" in dense.tensors:
            continue
        rows = {"attn_q": facts.n_embd_q(layer), "attn_k": facts.n_embd_k(layer), arch.v: facts.n_embd_v(layer)}
        for role, n in rows.items():
            info = dense.tensors.get(name := f"blk.{layer}.{role}.weight")
            if info and info.shape[-1] != n:
                raise damaged(dense.path, f"tensor '{name}'", f"{info.shape[-1]} rows, expected {n}")
            if not info:
                raise damaged(dense.path, f"tensor '{name}'", f"is missing, but layer {layer} shares attention")
