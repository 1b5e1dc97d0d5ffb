"""Read the weights that healing starts with from an SA GGUF whose followers were aligned or refitted.

Tensors of any type are decoded. The rows of V and the columns of O have the same order in a GGUF and in the checkpoint.
"""

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from ..errors import BadInput, Unsupported
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_FIT_TENSORS
from ..formats.tensor_copies import read_f32
from ..model.facts import read_facts
from ..model.spans import Span, spans_of
from .parts import attention_modules, fused_rows

StartingValues = dict[str, npt.NDArray[np.float32]]  # by parameter
MAX_DISTANCE = 0.05  # relative, between equal weights in two types; 4 bits are less than 2 % away, 2 bits 30 %


def spans_in(header: Header) -> tuple[Span, ...]:
    """Return the spans of an SA GGUF. Raises BadInput if it is dense."""
    facts = read_facts(header)
    if not facts.is_shared:
        raise BadInput("shares no attention", path=header.path, next_step="--from takes an SA GGUF")
    if (source_layers := facts.attention.source_layers) is None:
        reason = "shares or lacks single KV groups, and healing works with whole layers only"
        raise Unsupported(reason, path=header.path, field="--from")
    return spans_of(source_layers)


def fitted_weights(header: Header, model: PreTrainedModel) -> StartingValues:
    """Return the fitted tensors of the file by the names of the model's parameters.

    Raises BadInput if the file was not fitted, or the model has no such parameter.
    """
    names = header.value(KEY_FIT_TENSORS)
    if not isinstance(names, list):
        next_step = "--from takes what --align or --refit made"
        raise BadInput("is not there", path=header.path, field=KEY_FIT_TENSORS, next_step=next_step)
    return {_parameter(header, str(name), model): _decoded(header, str(name)) for name in names}


def check_origin(header: Header, model: PreTrainedModel) -> None:
    """Check that the V of the source layers is the model's. Raises BadInput if the file is of another model."""
    for span in spans_in(header):
        prefix, _, known = attention_modules(model)[span.source]
        of_model = model.get_parameter(f"{prefix}.{known.v}.weight").detach().float().cpu().numpy()
        name = f"blk.{span.source}.attn_{'qkv' if known.fused else 'v'}.weight"
        of_file = _decoded(header, name)
        if known.fused:
            rows = fused_rows(model.config, known.interleaved)["v"]
            of_model, of_file = of_model[list(rows)], of_file[-len(rows) :]
        max_distance = MAX_DISTANCE * np.linalg.norm(of_model)
        if of_file.shape != of_model.shape or np.linalg.norm(of_file - of_model) > max_distance:
            reason = "was not made from this checkpoint, or has too few bits"
            raise BadInput(reason, path=header.path, field=f"tensor '{name}'")


def _parameter(header: Header, name: str, model: PreTrainedModel) -> str:
    """Return the model's name of a tensor: 'blk.7.attn_v.weight' is 'model.layers.7.self_attn.v_proj.weight'."""
    _, layer, role, suffix = name.split(".")
    found = attention_modules(model).get(int(layer))
    if found is None or role not in ("attn_v", "attn_output"):
        raise BadInput("the checkpoint has no such projection", path=header.path, field=f"tensor '{name}'")
    prefix, _, projections = found
    return f"{prefix}.{projections.v if role == 'attn_v' else projections.o}.{suffix}"


def _decoded(header: Header, name: str) -> npt.NDArray[np.float32]:
    info = header.tensors.get(name)
    if info is None:
        raise BadInput("is missing", path=header.path, field=f"tensor '{name}'")
    return read_f32(info).reshape(info.shape[::-1])
