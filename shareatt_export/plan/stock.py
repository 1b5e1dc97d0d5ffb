"""A file for unpatched llama.cpp, made of an SA file in which KV groups are dropped and none follows.

A model that only lacks KV groups needs no attention weights of other layers, just another number of heads per layer.
llama.cpp's architecture "deci" (models of Nvidia such as Llama-3.1-Nemotron-51B) has that: it is Llama with a number of
query heads and KV heads for each layer, which may be zero. So Llama, and what differs from it in the order of rows
alone, can be written as "deci".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import Unsupported
from ..formats.gguf_encode import raw_array_i32, raw_string, raw_u32
from ..formats.gguf_header import Header, RawValue, TensorInfo
from ..formats.gguf_keys import PREFIX, key_source_heads, key_source_layers
from ..formats.tensor_copies import Cuts, TensorCopy, rows_of, whole_copy
from ..model.architectures import split_tensor_name
from ..model.attention_map import following
from ..model.facts import Facts

STOCK = "deci"
STOCK_KEEPS = (0,)  # layers that keep a KV group: llama.cpp takes the size of heads from layer 0
# whether RoPE rotates the halves of a head against each other, where "deci" rotates neighbours
ROTATES_HALVES = {"llama": False, "qwen2": True}
# what "deci" reads as these architectures do
KEYS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
SCALING = "rope.scaling."
COMMON = {"token_embd.weight", "output_norm.weight", "output.weight", "attn_norm.weight", "ffn_norm.weight"}
COMMON |= {f"{role}.weight" for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
COMMON |= {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
TENSORS = {  # that llama.cpp reads in each architecture, without the number of the layer
    "llama": COMMON | {"rope_freqs.weight", "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"},
    "qwen2": COMMON,
}


@dataclass(frozen=True)
class StockFile:
    """What is written: `metadata`, and `tensors` with their places in the SA file."""

    metadata: Mapping[str, RawValue]
    tensors: tuple[TensorCopy, ...]


def stock_file(sa: Header, facts: Facts) -> StockFile:
    """Return the file for unpatched llama.cpp. Raises Unsupported where there can be none."""
    _check_map(sa, facts)
    return StockFile(_metadata(sa, facts), tuple(_tensors(sa, facts)))


def _check_map(sa: Header, facts: Facts) -> None:
    if facts.arch not in ROTATES_HALVES:
        known = ", ".join(ROTATES_HALVES)
        raise Unsupported(f"is '{facts.arch}', and this is known of {known} only", path=sa.path)
    if not facts.is_shared:
        raise Unsupported("lacks no KV groups: every llama.cpp runs it as it is", path=sa.path)
    if followers := [str(group) for group, _ in following(facts.attention)]:
        next_step = "drop groups, and let none follow: export with --drop"
        raise Unsupported(f"KV group {followers[0]} follows another layer", path=sa.path, next_step=next_step)
    n_rot = sa.integer(f"{facts.arch}.rope.dimension_count", facts.head_dim_k)
    if not facts.head_dim_k == facts.head_dim_v == n_rot:
        sizes = f"Q and K of a head have {facts.head_dim_k} numbers, V {facts.head_dim_v}, and RoPE rotates {n_rot}"
        raise Unsupported(f"{sizes}; '{STOCK}' has one size for all", path=sa.path)
    for layer in STOCK_KEEPS:
        if not facts.attention.n_k(layer):
            next_step = "keep a KV group there"
            raise Unsupported(f"layer {layer} has no heads, whose size llama.cpp reads there", path=sa.path,
                              next_step=next_step)  # fmt: skip


def _metadata(sa: Header, facts: Facts) -> dict[str, RawValue]:
    arch, attention = facts.arch, facts.attention
    own = {key_source_layers(arch), key_source_heads(arch)}
    metadata: dict[str, RawValue] = {}
    for key, raw in sa.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if key in own or key.startswith(PREFIX):
            continue
        if name != key and name not in KEYS and not name.startswith(SCALING):
            raise Unsupported(f"'{STOCK}' is not known to have it", path=sa.path, field=f"metadata key '{key}'")
        metadata[key if name == key else f"{STOCK}.{name}"] = raw
    n_own = [attention.n_k(layer) for layer in range(facts.n_layer)]
    n_dropped = [facts.n_head_kv[layer] - n for layer, n in enumerate(n_own)]
    n_head = [n - attention.n_rep(layer) * n_dropped[layer] for layer, n in enumerate(facts.n_head)]
    return metadata | {
        "general.architecture": raw_string(STOCK),
        f"{STOCK}.attention.head_count": raw_array_i32(n_head),
        f"{STOCK}.attention.head_count_kv": raw_array_i32(n_own),
        f"{STOCK}.attention.key_length": raw_u32(facts.head_dim_k),
        f"{STOCK}.attention.value_length": raw_u32(facts.head_dim_v),
        f"{STOCK}.rope.dimension_count": raw_u32(facts.head_dim_k),
    }


def _tensors(sa: Header, facts: Facts) -> Iterator[TensorCopy]:
    for info in sa.tensors.values():
        layer, role, suffix = split_tensor_name(info.name)
        if (info.name if layer is None else f"{role}.{suffix}") not in TENSORS[facts.arch]:
            raise Unsupported(f"'{STOCK}' is not known to have it", path=sa.path, field=f"tensor '{info.name}'")
        if layer is None:
            yield whole_copy(info)
            continue
        if role.startswith("attn_") and not facts.attention.n_k(layer):
            if suffix == "bias":  # of W_O, which is added without any head, too
                raise Unsupported("its layer has no heads", path=sa.path, field=f"tensor '{info.name}'")
            continue  # the norm
        rotated = role in ("attn_q", "attn_k") and ROTATES_HALVES[facts.arch]
        yield rows_of(info, info.name, _neighbours(info, facts.head_dim_k)) if rotated else whole_copy(info)


def _neighbours(info: TensorInfo, head_dim: int) -> Cuts:
    """Return the rows of all heads, with each row of the first half of a head before its partner in the second half."""
    first_rows = range(0, info.shape[-1], head_dim)
    places = (first + half + i for first in first_rows for i in range(head_dim // 2) for half in (0, head_dim // 2))
    return tuple((place, place + 1) for place in places)
