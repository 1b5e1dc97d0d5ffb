"""Make the plan of an export from a header and spans; this opens no file."""

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
    """Return the plan to share attention in `spans`, besides the spans that the model has already.

    Raises Unsupported, BadInput or BadSpans if the model cannot be exported with these spans.
    """
    arch = require_exportable(dense)
    if fitting and facts.is_shared:
        next_step = "fit the dense model, with all spans at once"
        raise Unsupported("shares attention already", path=dense.path, next_step=next_step)
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
            reason, field = "is not known in a layer that shares attention", f"tensor '{info.name}'"
            raise Unsupported(reason, path=dense.path, field=field, next_step="choose other layers")
        else:
            tensors.append(whole_copy(info))
    check_layers(dense, facts)
    check_inventory(dense, facts, arch, spans)

    metadata = sa_metadata(dense, facts, source_layers, tensors, fitting)
    return Plan(dense, facts, spans_of(source_layers), source_layers, metadata, tuple(tensors), tuple(dropped), fitting)
