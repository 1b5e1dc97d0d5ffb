"""Encode numbers in a tensor type with the runtime's own ggml, as llama-quantize does."""

import ctypes
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import Unsupported
from ..formats.tensor_copies import FloatRows, RawRows
from .graph_callback import ggml_base


def encoded_rows(
    bin: Path, values: FloatRows, type: GGMLQuantizationType, importance: FloatRows | None, path: Path
) -> RawRows:
    """Return the rows in the given type, quantised by ggml_quantize_chunk of the libraries in the folder `bin`.

    `importance`: one number per column, as llama-imatrix measures it. Types of two bits and less need one; without
    it all columns count the same. Raises Unsupported, about `path`, where a row is not a whole number of blocks.
    """
    base = ggml_base(bin)
    values = np.ascontiguousarray(values, np.float32)
    rows, length = values.shape
    block, block_bytes = GGML_QUANT_SIZES[type]
    if length % block:
        raise Unsupported(f"rows of {length} numbers are not whole blocks of {type.name}", path=path)
    raw = np.empty((rows, length // block * block_bytes), np.uint8)
    if importance is None and base.ggml_quantize_requires_imatrix(int(type)):
        importance = np.ones(length, np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    weights = None if importance is None else importance.ctypes.data_as(ctypes.c_void_p)
    base.ggml_quantize_chunk(int(type), values.ctypes.data, raw.ctypes.data, 0, rows, length, weights)
    return raw
