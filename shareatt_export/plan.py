"""The plan of an export: which tensors the SA file holds, where their bytes stand in its input, and its metadata.

Pure: a plan is made from a header and spans alone, and opens no file. `--dry-run` prints it, write.py carries it
out, verify.py holds the written file against it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import gguf
from gguf import GGMLQuantizationType

from . import __version__
from .architectures import Architecture
from .encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from .errors import BadInput, Unsupported
from .facts import (
    FORMAT_VERSION,
    KEY_EXPORTER,
    KEY_FIT,
    KEY_FIT_SHA256,
    KEY_FIT_TENSORS,
    KEY_FIT_TEXT,
    KEY_FORMAT_VERSION,
    KEY_SOURCE_SHA256,
    KEY_SPANS,
    Facts,
    key_source_layers,
    require_exportable,
)
from .header import Header, RawValue, TensorInfo, damaged
from .shards import Piece, pieces
from .spans import SourceMap, Span, extended, spans_of

TAG = "shared-attention"


@dataclass(frozen=True)
class Copy:
    """A tensor of the SA file: the last bytes of a tensor of the input, mostly all. `shape` is in ggml order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int
    origin: TensorInfo

    @property
    def skipped(self) -> int:
        """Bytes of `origin` before those."""
        return self.origin.n_bytes - self.n_bytes


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

    v: Copy
    v_bias: Copy | None
    output: Copy

    def changed(self, fitting: Fitting) -> tuple[Copy, ...]:
        """Those that a fit may change."""
        return (*(copy for copy in (self.v, self.v_bias) if copy and fitting.align), self.output)


@dataclass(frozen=True)
class Plan:
    """`dense` is the input; it may share attention in some spans already, and `spans` are all of the output's."""

    dense: Header
    facts: Facts
    spans: tuple[Span, ...]
    source_layers: SourceMap
    metadata: dict[str, RawValue]
    tensors: tuple[Copy, ...]
    dropped: tuple[TensorInfo, ...]
    fitting: Fitting | None = None

    @property
    def weight_bytes_before(self) -> int:
        return sum(info.n_bytes for info in self.dense.tensors.values())

    @property
    def weight_bytes_after(self) -> int:
        return sum(copy.n_bytes for copy in self.tensors)

    @property
    def kv_bytes_per_token_before(self) -> int:
        return self.facts.kv_bytes_per_token(self.facts.source_layers)

    @property
    def kv_bytes_per_token_after(self) -> int:
        return self.facts.kv_bytes_per_token(self.source_layers)

    @property
    def fitted(self) -> tuple[Copy, ...]:
        """Tensors of new followers whose values will not be the dense file's."""
        if self.fitting is None:
            return ()
        new = (i for i, source in enumerate(self.source_layers) if source != self.facts.source_layers[i])
        return tuple(copy for i in new for copy in projections(self.dense, self.facts, i).changed(self.fitting))

    @property
    def spans_text(self) -> str:
        return ",".join(map(str, self.spans))

    def pieces(self, max_bytes: int | None = None) -> tuple[Piece[Copy], ...]:
        """The files to write: one, or shards of at most `max_bytes`."""
        return pieces(self.dense.version, self.metadata, self.tensors, self.dense.alignment, max_bytes)


def make_plan(dense: Header, facts: Facts, spans: tuple[Span, ...], fitting: Fitting | None = None) -> Plan:
    """Raises Unsupported, BadInput or BadSpans where the model cannot be exported with these spans (further ones, if it
    shares attention already)."""
    arch = require_exportable(dense)
    if fitting and facts.is_shared:
        raise Unsupported(f"{dense.path}: shares attention already; fit the dense model, with all spans at once")
    source_layers = extended(facts.source_layers, spans)
    for span in spans:
        _check_heads(dense, facts, span)

    tensors: list[Copy] = []
    dropped: list[TensorInfo] = []
    for info in dense.tensors.values():
        layer, role, suffix = _parts(info.name)
        if layer is None or layer >= facts.n_layer or source_layers[layer] == facts.source_layers[layer]:
            tensors.append(_whole(info))
        elif role in arch.qk:
            dropped.append(info)
        elif role == arch.fused_qkv:
            tensors.append(_v_rows(dense, facts, arch, info, layer, suffix))
        elif role.startswith(("attn_q", "attn_k")):
            why = "is not known in a layer that shares attention; choose other layers"
            raise Unsupported(f"{dense.path}: tensor '{info.name}': {why}")
        else:
            tensors.append(_whole(info))
    _check_layers(dense, facts)
    _check_inventory(dense, facts, arch, spans)

    plan = Plan(dense, facts, spans_of(source_layers), source_layers, {}, tuple(tensors), tuple(dropped), fitting)
    return replace(plan, metadata=_metadata(plan))


def with_identity(plan: Plan, source_sha256: str) -> Plan:
    """The plan with the identity of the dense file's tensor data, which only reading all of it can tell."""
    return replace(plan, metadata=plan.metadata | {KEY_SOURCE_SHA256: raw_string(source_sha256)})


def with_fit(plan: Plan, fitted: Mapping[Copy, TensorInfo], sha256: Sequence[str]) -> Plan:
    """The plan with the tensors of plan.fitted taken from where their new values stand, with their SHA-256 in order."""
    tensors = tuple(replace(copy, origin=fitted[copy]) if copy in fitted else copy for copy in plan.tensors)
    return replace(plan, tensors=tensors, metadata=plan.metadata | {KEY_FIT_SHA256: raw_string_array(sha256)})


def copies(header: Header) -> tuple[Copy, ...]:
    """Every tensor of a file, as it stands there."""
    return tuple(map(_whole, header.tensors.values()))


def projections(dense: Header, facts: Facts, layer: int) -> Projections:
    """Those of any layer, if it were a follower. Raises Unsupported where it has no output projection."""
    arch = require_exportable(dense)

    def v(suffix: str) -> Copy | None:
        if (fused := dense.tensors.get(f"blk.{layer}.{arch.fused_qkv}.{suffix}")) is not None:
            return _v_rows(dense, facts, arch, fused, layer, suffix)
        info = dense.tensors.get(f"blk.{layer}.{arch.v}.{suffix}")
        return _whole(info) if info else None

    weight, output = v("weight"), dense.tensors.get(f"blk.{layer}.attn_output.weight")
    if weight is None or output is None:
        raise Unsupported(f"{dense.path}: layer {layer}: '{facts.arch}' has no attn_output.weight to fit")
    return Projections(weight, v("bias"), _whole(output))


def _parts(name: str) -> tuple[int | None, str, str]:
    """'blk.7.attn_q.weight' -> (7, 'attn_q', 'weight'); tensors outside the layers have no layer."""
    parts = name.split(".")
    if parts[0] != "blk" or len(parts) < 3 or not re.fullmatch("0|[1-9][0-9]{0,3}", parts[1]):
        return None, name, ""
    return int(parts[1]), parts[2], ".".join(parts[3:])


def _whole(info: TensorInfo) -> Copy:
    return Copy(info.name, info.shape, info.type, info.n_bytes, info)


def _check_heads(dense: Header, facts: Facts, span: Span) -> None:
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


def _check_layers(dense: Header, facts: Facts) -> None:
    """There must be tensors of each layer, and of no other. Some files leave those away that predict further tokens."""
    found = {layer for name in dense.tensors if (layer := _parts(name)[0]) is not None}
    missing = set(range(facts.n_layer - facts.n_layer_nextn)) - found
    further = found - set(range(facts.n_layer))
    if missing or further:
        what = f"no tensor is of layer {min(missing)}" if missing else f"tensors are of layer {min(further)} too"
        raise damaged(dense.path, f"{facts.arch}.block_count", f"{facts.n_layer}, but {what}")


def _check_inventory(dense: Header, facts: Facts, arch: Architecture, spans: tuple[Span, ...]) -> None:
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


def _v_rows(dense: Header, facts: Facts, arch: Architecture, fused: TensorInfo, layer: int, suffix: str) -> Copy:
    """The rows of V in a fused QKV tensor: the last ones, so one run of bytes, in quantised tensors too."""
    name = f"blk.{layer}.{arch.v}.{suffix}"
    if suffix not in ("weight", "bias"):  # scales that Q, K and V have in common
        return replace(_whole(fused), name=name)
    n_v = facts.n_embd_v(layer)
    n_qkv = facts.n_embd_q(layer) + facts.n_embd_k(layer) + n_v
    if fused.shape[-1] != n_qkv:
        raise damaged(dense.path, f"tensor '{fused.name}'", f"{fused.shape[-1]} rows, expected {n_qkv}")
    return Copy(name, (*fused.shape[:-1], n_v), fused.type, fused.n_bytes // n_qkv * n_v, fused)


def _metadata(plan: Plan) -> dict[str, RawValue]:
    """The dense file's metadata in its order, brought up to date, then ours."""
    dense = _before_sharing(plan.dense, plan.facts)
    metadata = dict(dense.metadata)
    tag = _tag(plan.spans)
    if (name := dense.text("general.name", "")) != "":
        metadata = {key: raw for key, raw in metadata.items() if not key.startswith("general.base_model.")}
        metadata["general.name"] = raw_string(f"{name} {tag}")
        metadata["general.base_model.count"] = raw_u32(1)
        for field in ("name", "organization", "version", "repo_url"):
            if value := dense.text(f"general.{field}", ""):
                metadata[f"general.base_model.0.{field}"] = raw_string(value)
    if "general.finetune" in metadata:
        metadata["general.finetune"] = raw_string(f"{dense.text('general.finetune')}-{tag}")
    if "general.size_label" in metadata and f"{plan.facts.arch}.expert_count" not in metadata:
        n_elements = sum(math.prod(copy.shape) for copy in plan.tensors)
        metadata["general.size_label"] = raw_string(gguf.size_label(n_elements, n_elements, 0, 0))
    tags = dense.value("general.tags")
    known = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    metadata["general.tags"] = raw_string_array([*known, *([] if TAG in known else [TAG])])
    if plan.fitting:
        names = [copy.name for copy in plan.fitted]
        metadata |= {
            KEY_FIT: raw_string(str(plan.fitting)),
            KEY_FIT_TEXT: raw_string(plan.fitting.text_sha256),
            KEY_FIT_TENSORS: raw_string_array(names),
            KEY_FIT_SHA256: raw_string_array(["0" * 64] * len(names)),  # until with_fit
        }
    return metadata | {
        key_source_layers(plan.facts.arch): raw_array_i32(plan.source_layers),
        KEY_FORMAT_VERSION: raw_u32(FORMAT_VERSION),
        KEY_SPANS: raw_string(plan.spans_text),
        KEY_EXPORTER: raw_string(f"shareatt-export {__version__}"),
        KEY_SOURCE_SHA256: raw_string("0" * 64),  # until with_identity
    }


def _before_sharing(header: Header, facts: Facts) -> Header:
    """Without what an export adds, so that an SA file given more spans is the file that all spans at once make."""
    if not facts.is_shared:
        return header
    own = {key_source_layers(facts.arch), KEY_FORMAT_VERSION, KEY_SPANS, KEY_EXPORTER, KEY_SOURCE_SHA256}
    metadata = {key: raw for key, raw in header.metadata.items() if key not in own}
    tag = _tag(spans_of(facts.source_layers))
    for key, joint in (("general.name", " "), ("general.finetune", "-")):
        if text := header.text(key, ""):
            metadata[key] = raw_string(text.removesuffix(joint + tag))
    return replace(header, metadata=metadata)


def _tag(spans: tuple[Span, ...]) -> str:
    return f"SA{','.join(map(str, spans))}"
