"""Where healing begins, if not with the model as it is: with the followers of an SA GGUF that was aligned or refitted.

Its tensors are decoded, whatever their type; rows of V and columns of O stand in a GGUF as in the checkpoint.
"""

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from ..errors import BadInput
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_FIT_TENSORS
from ..formats.tensor_copies import read_f32
from ..model.facts import read_facts
from ..model.spans import Span, spans_of
from .trained_weights import attention_modules

StartingValues = dict[str, npt.NDArray[np.float32]]  # by parameter
FAR = 0.05  # relative distance of the same weights in another type, at most; 4 bits are less than 2 % away, 2 are 30 %


def spans_in(header: Header) -> tuple[Span, ...]:
    facts = read_facts(header)
    if not facts.is_shared:
        raise BadInput(f"{header.path}: shares no attention; --from takes an SA GGUF")
    return spans_of(facts.source_layers)


def fitted_weights(header: Header, model: PreTrainedModel) -> StartingValues:
    """Of the followers that were fitted. Raises BadInput where the shapes are not those of the model."""
    names = header.value(KEY_FIT_TENSORS)
    if not isinstance(names, list):
        raise BadInput(f"{header.path}: {KEY_FIT_TENSORS}: is not there; --from takes what --align or --refit made")
    return {_parameter(header, str(name), model): _decoded(header, str(name)) for name in names}


def check_origin(header: Header, model: PreTrainedModel) -> None:
    """Raises BadInput unless the file was made from this model: V of its sources must be the model's."""
    for span in spans_in(header):
        name = f"blk.{span.source}.attn_v.weight"
        theirs = model.get_parameter(_parameter(header, name, model)).detach().float().cpu().numpy()
        ours = _decoded(header, name)
        if ours.shape != theirs.shape or np.linalg.norm(ours - theirs) > FAR * np.linalg.norm(theirs):
            raise BadInput(f"{header.path}: tensor '{name}': was not made from this checkpoint, or has too few bits")


def _parameter(header: Header, name: str, model: PreTrainedModel) -> str:
    """'blk.7.attn_v.weight' -> 'model.layers.7.self_attn.v_proj.weight'"""
    _, layer, role, suffix = name.split(".")
    found = attention_modules(model).get(int(layer))
    if found is None or role not in ("attn_v", "attn_output"):
        raise BadInput(f"{header.path}: tensor '{name}': the checkpoint has no such projection")
    prefix, _, known = found
    return f"{prefix}.{known.v if role == 'attn_v' else known.o}.{suffix}"


def _decoded(header: Header, name: str) -> npt.NDArray[np.float32]:
    info = header.tensors.get(name)
    if info is None:
        raise BadInput(f"{header.path}: tensor '{name}' is missing")
    return read_f32(info).reshape(info.shape[::-1])
