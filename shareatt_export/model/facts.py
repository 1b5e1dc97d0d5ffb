"""The facts about a model that the export needs: its layers, its heads, and which tokens its layers attend to."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ..errors import BadSpans, Unsupported, damaged
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_FORMAT_VERSION, VERSION_HEADS, VERSION_LAYERS, key_source_heads, key_source_layers
from .architectures import ARCHITECTURES, REFUSED, Architecture
from .attention_map import AttentionMap, dense_map, of_flat, of_layers
from .spans import SourceMap, spans_of

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_HEADS = 1024  # of a layer; no model has more than 256, and a map has an entry for each
F16 = GGMLQuantizationType.F16


@dataclass(frozen=True)
class Facts:
    """The shape of a model. The tuples have one entry per layer."""

    arch: str
    n_layer: int
    n_embd: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    n_ctx_train: int
    is_swa: tuple[bool, ...]  # whether the layer attends to a sliding window instead of all tokens
    attention: AttentionMap  # with the heads in the order of the file
    n_layer_nextn: int = 0  # number of last layers that predict further tokens in speculative decoding

    @property
    def is_shared(self) -> bool:
        """Whether groups of heads share attention, or lack it, already."""
        return not self.attention.is_dense

    @cached_property
    def dense_attention(self) -> AttentionMap:
        """The map in which all heads compute their attention weights."""
        return dense_map(self.n_head, self.n_head_kv)

    def of_layers(self, source_layers: SourceMap) -> AttentionMap:
        """Return the map that shares these whole layers."""
        return of_layers(self.dense_attention, source_layers)

    def n_embd_q(self, layer: int) -> int:
        """Number of rows of the Q projection."""
        return self.n_head[layer] * self.head_dim_k

    def n_embd_k(self, layer: int) -> int:
        """Number of rows of the K projection."""
        return self.n_head_kv[layer] * self.head_dim_k

    def n_embd_v(self, layer: int) -> int:
        """Number of rows of the V projection."""
        return self.n_head_kv[layer] * self.head_dim_v

    def kv_bytes_per_token(
        self,
        attention: AttentionMap,
        type_k: GGMLQuantizationType = F16,
        type_v: GGMLQuantizationType = F16,
        without: Collection[int] = (),
    ) -> int:
        """Return the bytes that one token takes in the KV cache.

        A group that follows stores no K, one that is dropped neither K nor V, nor do the layers `without` attention.
        """
        layers = [layer for layer in range(self.n_layer) if layer not in without]
        k = sum(row_bytes(attention.n_k(layer) * self.head_dim_k, type_k) for layer in layers)
        v = sum(row_bytes(attention.n_v(layer) * self.head_dim_v, type_v) for layer in layers)
        return k + v


def row_bytes(n: int, type: GGMLQuantizationType) -> int:
    """Return the bytes of a row of `n` numbers, whole blocks only."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    return n // block * block_bytes


def read_facts(header: Header) -> Facts:
    """Return the facts about a GGUF language model.

    Raises BadInput if the metadata contradicts itself, Unsupported if the file is not a language model.
    """
    arch = header.text("general.architecture")
    if (kind := header.text("general.type", "model")) != "model":
        reason, next_step = f"is of type '{kind}'", "name the file of a language model"
        raise Unsupported(reason, path=header.path, field="general.type", next_step=next_step)
    if f"{arch}.block_count" not in header.metadata:
        require_exportable(header)
    n_layer = header.integer(f"{arch}.block_count")
    if not 1 <= n_layer <= MAX_LAYERS:
        raise damaged(header.path, f"{arch}.block_count", f"{n_layer} layers, 1 to {MAX_LAYERS} are possible")

    def count(key: str, default: int | None = None) -> int:
        return _count(header, f"{arch}.{key}", default)

    def counts(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        if f"{arch}.{key}" not in header.metadata:
            return default
        found = header.integers(f"{arch}.{key}", n_layer)
        if (most := max(_bounded(header, f"{arch}.{key}", n) for n in found)) > MAX_HEADS:
            raise damaged(header.path, f"{arch}.{key}", f"{most} heads, at most {MAX_HEADS} are possible")
        return found

    n_embd = count("embedding_length")
    n_layer_nextn = count("nextn_predict_layers", 0)
    if n_layer_nextn >= n_layer:
        raise damaged(header.path, f"{arch}.nextn_predict_layers", f"{n_layer_nextn} of {n_layer} layers")
    n_head = counts("attention.head_count", (0,) * n_layer)
    n_head_kv = counts("attention.head_count_kv", n_head)
    head_dim = n_embd // n_head[0] if n_head[0] else 0
    return Facts(
        arch=arch,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim_k=count("attention.key_length", head_dim),
        head_dim_v=count("attention.value_length", head_dim),
        n_ctx_train=count("context_length"),
        is_swa=_is_swa(header, arch, n_layer, n_layer_nextn),
        attention=_attention(header, arch, dense_map(n_head, n_head_kv)),
        n_layer_nextn=n_layer_nextn,
    )


def _count(header: Header, key: str, default: int | None = None) -> int:
    return _bounded(header, key, header.integer(key, default))


def _bounded(header: Header, key: str, n: int) -> int:
    if not 0 <= n < 1 << 31:
        raise damaged(header.path, key, f"{n} is not possible")
    return n


def _is_swa(header: Header, arch: str, n_layer: int, n_layer_nextn: int) -> tuple[bool, ...]:
    """Follow llama.cpp's load_swa_pattern; architectures that the table does not know have no sliding windows."""
    sliding = ARCHITECTURES[arch].sliding if arch in ARCHITECTURES else None
    if (
        sliding is None
        or sliding.n_layer not in (None, n_layer)
        or _count(header, f"{arch}.attention.sliding_window", sliding.window) == 0
    ):
        return (False,) * n_layer
    key = f"{arch}.attention.sliding_window_pattern"
    if (flags := header.flags(key, n_layer)) is not None:
        return flags
    period = _count(header, key, sliding.period or None)
    full = 0 if sliding.dense_first else period - 1
    return tuple(
        layer < n_layer - n_layer_nextn and (period == 0 or layer % period != full) for layer in range(n_layer)
    )


def _attention(header: Header, arch: str, dense: AttentionMap) -> AttentionMap:
    layers, heads = key_source_layers(arch), key_source_heads(arch)
    if layers not in header.metadata and heads not in header.metadata:
        return dense
    key, version = (layers, VERSION_LAYERS) if layers in header.metadata else (heads, VERSION_HEADS)
    found = header.integer(KEY_FORMAT_VERSION, VERSION_LAYERS)
    if found > VERSION_HEADS:
        reason = f"is {found}, this version reads up to {VERSION_HEADS}"
        raise Unsupported(reason, path=header.path, field=KEY_FORMAT_VERSION, next_step="upgrade it")
    if found != version:
        raise damaged(header.path, KEY_FORMAT_VERSION, f"is {found}, but the file has {key}")
    raw = header.metadata[key]
    if raw.type != GGUFValueType.ARRAY or raw.raw[:4] != GGUFValueType.INT32.to_bytes(4, "little"):
        raise damaged(header.path, key, "must be an array of i32")
    try:
        if key == heads:
            attention = of_flat(dense, header.integers(key, dense.stride * dense.n_layer))
            if attention.in_file_order() != attention:
                raise damaged(header.path, key, "heads must come in the order own, following, dropped")
            return attention
        source_layers = header.integers(key, dense.n_layer)
        spans_of(source_layers)
    except BadSpans as error:
        raise damaged(header.path, f"{key}: {error.field}", error.reason) from None
    return of_layers(dense, source_layers)


def require_exportable(header: Header) -> Architecture:
    """Return the architecture of the model. Raises Unsupported if it cannot be exported."""
    arch = header.text("general.architecture")
    if arch not in ARCHITECTURES:
        why = f"supported: {REFUSED[arch]}" if arch in REFUSED else "known to this version"
        known = ", ".join(ARCHITECTURES)
        reason = f"'{arch[:64]}' is not {why} (supported: {known})"
        raise Unsupported(reason, path=header.path, field="general.architecture")
    return ARCHITECTURES[arch]
