"""Make the plan of an export from a header and an attention map; this opens no file."""

from ..formats.gguf_header import Header, TensorInfo
from ..formats.tensor_copies import TensorCopy, whole_copy
from ..model.architectures import split_tensor_name
from ..model.attention_map import AttentionMap
from ..model.facts import Facts, require_exportable
from .checks import check_inventory, check_layers, check_map, new_layers
from .cuts import LayerCuts
from .metadata import sa_metadata
from .plan import Plan
from .projections import Fitting


def make_plan(dense: Header, facts: Facts, attention: AttentionMap, fitting: Fitting | None = None) -> Plan:
    """Return the plan to write a model with an attention map.

    A model that shares whole layers already can get more of them; then `attention` has the old ones, too. Raises
    Unsupported, BadInput or BadSpans if the model cannot be exported with this map.
    """
    arch = require_exportable(dense)
    new = new_layers(dense, facts, attention, fits=fitting is not None)
    check_map(dense, facts, arch, attention, new)
    check_layers(dense, facts)
    check_inventory(dense, facts, arch, attention, new)
    cuts = {layer: LayerCuts(dense, facts, arch, attention, layer) for layer in new}
    tensors: list[TensorCopy] = []
    dropped: list[TensorInfo] = []
    for info in dense.tensors.values():
        layer, role, suffix = split_tensor_name(info.name)
        if layer is None or layer not in cuts:
            tensors.append(whole_copy(info))
        elif (copy := cuts[layer].cut(info, role, suffix)) is not None:
            tensors.append(copy)
        else:
            dropped.append(info)
    metadata = sa_metadata(dense, facts, attention, tensors, fitting)
    return Plan(dense, facts, attention, metadata, tuple(tensors), tuple(dropped), fitting)
