"""Weights that are no numbers: NaN and infinity, in floats and in the scales of block types.

As llama.cpp's --check-tensors (ggml_validate_row_data), but before the file is written, and with tensor and place.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from ..errors import BadInput
from .gguf_header import TensorInfo

FLOATS = {  # integers of the same size, and the bits of the exponent: all set in what is no number
    Type.F16: ("<u2", 0x7C00),
    Type.BF16: ("<u2", 0x7F80),
    Type.F32: ("<u4", 0x7F800000),
}
SCALES = {  # where the f16 scales of a block are
    **dict.fromkeys((Type.Q1_0, Type.Q4_0, Type.Q5_0, Type.Q8_0, Type.IQ4_NL, Type.IQ4_XS), (0,)),
    **dict.fromkeys((Type.IQ1_S, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S), (0,)),
    **dict.fromkeys((Type.Q4_1, Type.Q5_1, Type.Q8_1, Type.Q4_K, Type.Q5_K), (0, 2)),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q6_K: (208,),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
}


def check(info: TensorInfo, at: int, data: bytes | bytearray) -> None:
    """`data` are whole blocks of the tensor, its bytes from `at` on. Raises BadInput with the first that is bad."""
    block, block_bytes = GGML_QUANT_SIZES[info.type]
    bad = _bad(info.type, block_bytes, np.frombuffer(data, np.uint8))
    if bad is None or not bad.any():
        return
    first = at // block_bytes + int(bad.argmax())
    where = f"element {first}" if block == 1 else f"the scale of elements {first * block} to {(first + 1) * block - 1}"
    raise BadInput(
        f"{info.path}: tensor '{info.name}': {where} is NaN or infinite; get the model again, or add --allow-nonfinite"
    )


def _bad(type: Type, block_bytes: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
    """For each block whether a float of it is no number; None for types that hold none."""
    if type in FLOATS:
        word, exponent = FLOATS[type]
        bits = data.view(word) & np.array(exponent, word)
        return _same(bits, exponent) if bits.max(initial=0) == exponent else None
    if type == Type.F64:
        with np.errstate(over="ignore", invalid="ignore"):
            return _not_finite(data.view("<f8").astype("<f4"))  # which is what llama.cpp computes with
    blocks = data.reshape(-1, block_bytes)
    if type in SCALES:
        first, *second = (_no_f16(_words(blocks, at)) for at in SCALES[type])
        return first | second[0] if second else first
    if type == Type.Q8_K:
        return _not_finite(np.ascontiguousarray(blocks[:, :4]).view("<f4")[:, 0])
    if type == Type.IQ1_M:  # four bits of the scale in each of four words; the exponent is in the last two
        high, low = _words(blocks, 54) & np.uint16(0xF000), _words(blocks, 52) >> np.uint16(4) & np.uint16(0x0F00)
        return _no_f16(high | low)
    if type == Type.MXFP4:
        return _same(blocks[:, 0], 0xFF)
    return None


def _not_finite(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(numbers)
    return ~finite


def _same(numbers: npt.NDArray[Any], number: int) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = numbers == numbers.dtype.type(number)
    return same


def _words(blocks: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.uint16]:
    words: npt.NDArray[np.uint16] = np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2")[:, 0]
    return words


def _no_f16(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    return _same(words & np.uint16(0x7C00), 0x7C00)
