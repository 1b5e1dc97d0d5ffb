"""The tensors of a follower that a fit may change: what makes its V, and its output projection."""

from dataclasses import dataclass, replace

from ..errors import Unsupported, damaged
from ..formats.gguf_header import Header, TensorInfo
from ..formats.gguf_keys import KEY_FIT, KEY_FIT_TEXT
from ..formats.tensor_copies import TensorCopy, whole_copy
from ..model.architectures import Architecture
from ..model.facts import Facts, require_exportable


@dataclass(frozen=True)
class Fitting:
    """How the weights of followers are to be fitted, and the text for it."""

    align: bool
    refit: bool
    text_sha256: str

    def __str__(self) -> str:
        return ",".join(name for name in ("align", "refit") if getattr(self, name))

    @classmethod
    def of(cls, header: Header) -> "Fitting | None":
        """What an SA file says was done to it."""
        if KEY_FIT not in header.metadata:
            return None
        names = header.text(KEY_FIT).split(",")
        return cls("align" in names, "refit" in names, header.text(KEY_FIT_TEXT, ""))


@dataclass(frozen=True)
class Projections:
    """Of a follower: what makes its V, and what its heads' outputs go through."""

    v: TensorCopy
    v_bias: TensorCopy | None
    output: TensorCopy

    def changed(self, fitting: Fitting) -> tuple[TensorCopy, ...]:
        """Those that a fit may change."""
        return (*(copy for copy in (self.v, self.v_bias) if copy and fitting.align), self.output)


def projections(dense: Header, facts: Facts, layer: int) -> Projections:
    """Those of any layer, if it were a follower. Raises Unsupported where it has no output projection."""
    arch = require_exportable(dense)

    def v(suffix: str) -> TensorCopy | None:
        if (fused := dense.tensors.get(f"blk.{layer}.{arch.fused_qkv}.{suffix}")) is not None:
            return v_rows(dense, facts, arch, fused, layer, suffix)
        info = dense.tensors.get(f"blk.{layer}.{arch.v}.{suffix}")
        return whole_copy(info) if info else None

    weight, output = v("weight"), dense.tensors.get(f"blk.{layer}.attn_output.weight")
    if weight is None or output is None:
        raise Unsupported(f"{dense.path}: layer {layer}: '{facts.arch}' has no attn_output.weight to fit")
    return Projections(weight, v("bias"), whole_copy(output))


def v_rows(dense: Header, facts: Facts, arch: Architecture, fused: TensorInfo, layer: int, suffix: str) -> TensorCopy:
    """The rows of V in a fused QKV tensor: the last ones, so one run of bytes, in quantised tensors too."""
    name = f"blk.{layer}.{arch.v}.{suffix}"
    if suffix not in ("weight", "bias"):  # scales that Q, K and V have in common
        return replace(whole_copy(fused), name=name)
    n_v = facts.n_embd_v(layer)
    n_qkv = facts.n_embd_q(layer) + facts.n_embd_k(layer) + n_v
    if fused.shape[-1] != n_qkv:
        raise damaged(dense.path, f"tensor '{fused.name}'", f"{fused.shape[-1]} rows, expected {n_qkv}")
    return TensorCopy(name, (*fused.shape[:-1], n_v), fused.type, fused.n_bytes // n_qkv * n_v, fused)
