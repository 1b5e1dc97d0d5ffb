"""Make the plan of an export from a header and spans alone; no file is opened."""

from dataclasses import replace

from ..errors import Unsupported
from ..formats.gguf_header import Header, TensorInfo
from ..formats.tensor_copies import TensorCopy, whole_copy
from ..model.architectures import split_tensor_name
from ..model.facts import Facts, require_exportable
from ..model.spans import Span, extended, spans_of
from .checks import check_heads, check_inventory, check_layers
from .metadata import sa_metadata
from .plan import Plan
from .projections import Fitting, v_rows


def make_plan(dense: Header, facts: Facts, spans: tuple[Span, ...], fitting: Fitting | None = None) -> Plan:
    """Raises Unsupported, BadInput or BadSpans where the model cannot be exported with these spans (further ones, if it
    shares attention already)."""
    arch = require_exportable(dense)
    if fitting and facts.is_shared:
        raise Unsupported(f"{dense.path}: shares attention already; fit the dense model, with all spans at once")
    source_layers = extended(facts.source_layers, spans)
    for span in spans:
        check_heads(dense, facts, span)

    tensors: list[TensorCopy] = []
    dropped: list[TensorInfo] = []
    for info in dense.tensors.values():
        layer, role, suffix = split_tensor_name(info.name)
        if layer is None or layer >= facts.n_layer or source_layers[layer] == facts.source_layers[layer]:
            tensors.append(whole_copy(info))
        elif role in arch.qk:
            dropped.append(info)
        elif role == arch.fused_qkv:
            tensors.append(v_rows(dense, facts, arch, info, layer, suffix))
        elif role.startswith(("attn_q", "attn_k")):
            why = "is not known in a layer that shares attention; choose other layers"
            raise Unsupported(f"{dense.path}: tensor '{info.name}': {why}")
        else:
            tensors.append(whole_copy(info))
    check_layers(dense, facts)
    check_inventory(dense, facts, arch, spans)

    plan = Plan(dense, facts, spans_of(source_layers), source_layers, {}, tuple(tensors), tuple(dropped), fitting)
    return replace(plan, metadata=sa_metadata(plan))
