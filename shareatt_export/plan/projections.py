"""The tensors that a fit or healing may change: of followers V and the output projection, of sources Q and K."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import Unsupported, damaged
from ..formats.gguf_header import Header, TensorInfo
from ..formats.gguf_keys import KEY_FIT, KEY_FIT_TEXT
from ..formats.tensor_copies import TensorCopy, rows_of, whole_copy
from ..model.architectures import Architecture
from ..model.attention_map import AttentionMap, following
from ..model.facts import Facts, require_exportable
from ..model.spans import followers
from .cuts import LayerCuts

WAYS = ("align", "refit", "heal", "mlp")
MLP = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Fitting:
    """How weights are fitted, and the SHA-256 of the text for it.

    `align` and `refit` change followers alone. `heal` trains followers and their sources, `mlp` their MLPs, too.
    """

    align: bool
    refit: bool
    text_sha256: str
    heal: bool = False
    mlp: bool = False

    def __str__(self) -> str:
        return ",".join(name for name in WAYS if getattr(self, name))

    @classmethod
    def from_header(cls, header: Header) -> "Fitting | None":
        """Return what an SA file records about its fit, None if its weights are the dense file's."""
        if KEY_FIT not in header.metadata:
            return None
        names = header.text(KEY_FIT).split(",")
        return cls(text_sha256=header.text(KEY_FIT_TEXT, ""), **{name: name in names for name in WAYS})


@dataclass(frozen=True)
class Projections:
    """The V projection of a follower, and the output projection of its heads."""

    v: TensorCopy
    v_bias: TensorCopy | None
    output: TensorCopy

    def changed(self, fitting: Fitting) -> tuple[TensorCopy, ...]:
        """Return the tensors that the fit may change; only --align changes V."""
        return (*(copy for copy in (self.v, self.v_bias) if copy and fitting.align), self.output)


def projections(dense: Header, facts: Facts, layer: int) -> Projections:
    """Return the projections that a layer has as a follower. Raises Unsupported if it has no output projection."""
    arch = require_exportable(dense)

    def v(suffix: str) -> TensorCopy | None:
        if (fused := dense.tensors.get(f"blk.{layer}.{arch.fused_qkv}.{suffix}")) is not None:
            return v_rows(dense, facts, arch, fused, layer, suffix)
        info = dense.tensors.get(f"blk.{layer}.{arch.v}.{suffix}")
        return whole_copy(info) if info else None

    weight, output = v("weight"), dense.tensors.get(f"blk.{layer}.attn_output.weight")
    if weight is None or output is None:
        reason = f"'{facts.arch}' has no attn_output.weight to fit"
        raise Unsupported(reason, path=dense.path, field=f"layer {layer}")
    return Projections(weight, v("bias"), whole_copy(output))


def fitted_tensors(dense: Header, facts: Facts, attention: AttentionMap, fitting: Fitting) -> tuple[TensorCopy, ...]:
    """Return the tensors that a fit may change in the layers which the map makes new followers.

    If the fit heals, also those of the layers whose attention weights the followers use. Raises Unsupported for a map
    of single groups where the fit knows whole layers only.
    """
    if (source_layers := attention.source_layers) is None:
        return _of_groups(dense, facts, attention, fitting)
    new = [layer for layer in followers(source_layers) if layer not in facts.attention.touched]
    if fitting.heal:
        layers = sorted({*new, *(source_layers[layer] for layer in new)})
        return tuple(copy for layer in layers for copy in _healed(dense, facts, layer, layer in new, fitting.mlp))
    return tuple(copy for layer in new for copy in projections(dense, facts, layer).changed(fitting))


def _of_groups(dense: Header, facts: Facts, attention: AttentionMap, fitting: Fitting) -> tuple[TensorCopy, ...]:
    if fitting.align:
        reason = "--align works with whole layers only, and single KV groups share or are dropped"
        raise Unsupported(reason, path=dense.path, next_step="use --refit alone")
    if fitting.heal:
        return tuple(_healed_groups(dense, facts, attention, fitting.mlp))
    return tuple(copy for layer in attention.touched if (copy := output_columns(dense, facts, attention, layer)))


def trained_roles(attention: AttentionMap) -> dict[int, tuple[str, ...]]:
    """Return what healing trains in each layer: "qk" where weights are computed, "vo" where a touched layer has V."""
    roles: dict[int, tuple[str, ...]] = {}
    sources = {source for _, source in following(attention)}
    for layer in sorted({*attention.touched, *sources}):
        qk = ("qk",) if attention.n_k(layer) else ()
        roles[layer] = (*qk, *(("vo",) if attention.n_v(layer) and layer in attention.touched else ()))
    return roles


def _healed_groups(dense: Header, facts: Facts, attention: AttentionMap, mlp: bool) -> Iterator[TensorCopy]:
    arch = require_exportable(dense)
    names = {"qk": ("attn_q", "attn_k"), "vo": (arch.v, "attn_output")}
    for layer, roles in trained_roles(attention).items():
        cuts = LayerCuts(dense, facts, arch, attention, layer)
        for role in [*(name for pair in roles for name in names[pair]), *(MLP if mlp else ())]:
            for suffix in ("weight", "bias"):
                if (info := dense.tensors.get(f"blk.{layer}.{role}.{suffix}")) is not None and (
                    copy := cuts.cut(info, role, suffix)
                ) is not None:
                    yield copy


def output_columns(dense: Header, facts: Facts, attention: AttentionMap, layer: int) -> TensorCopy | None:
    """Return the columns that the output projection of a layer keeps, None if it keeps none."""
    if (info := dense.tensors.get(f"blk.{layer}.attn_output.weight")) is None:
        reason = f"'{facts.arch}' has no attn_output.weight to fit"
        raise Unsupported(reason, path=dense.path, field=f"layer {layer}")
    return LayerCuts(dense, facts, require_exportable(dense), attention, layer).cut(info, "attn_output", "weight")


def _healed(dense: Header, facts: Facts, layer: int, follows: bool, mlp: bool) -> Iterator[TensorCopy]:
    """Yield the tensors of a layer that healing trains. Of a fused QKV tensor, it trains the rows of Q and K."""
    arch = require_exportable(dense)
    roles = [arch.v, "attn_output"] if follows else ["attn_q", "attn_k", arch.fused_qkv]
    for role in [*roles, *(MLP if mlp else ())]:
        for suffix in ("weight", "bias"):
            if (info := dense.tensors.get(f"blk.{layer}.{role}.{suffix}")) is not None:
                yield whole_copy(info)
            elif role == arch.v and (info := dense.tensors.get(f"blk.{layer}.{arch.fused_qkv}.{suffix}")) is not None:
                yield v_rows(dense, facts, arch, info, layer, suffix)


def v_rows(dense: Header, facts: Facts, arch: Architecture, fused: TensorInfo, layer: int, suffix: str) -> TensorCopy:
    """Return the rows of V in a fused QKV tensor. They are the last rows, so their bytes are contiguous in any type.

    Raises BadInput if the tensor has another number of rows than Q, K and V need.
    """
    name = f"blk.{layer}.{arch.v}.{suffix}"
    if suffix not in ("weight", "bias"):  # one scale for Q, K and V together
        return replace(whole_copy(fused), name=name)
    n_v = facts.n_embd_v(layer)
    n_qkv = facts.n_embd_q(layer) + facts.n_embd_k(layer) + n_v
    if fused.shape[-1] != n_qkv:
        raise damaged(dense.path, f"tensor '{fused.name}'", f"{fused.shape[-1]} rows, expected {n_qkv}")
    return rows_of(fused, name, ((n_qkv - n_v, n_qkv),))
