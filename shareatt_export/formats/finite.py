"""Find NaN and infinity in weights: in floats, and in the scales of quantised blocks.

The rules are the ones of llama.cpp's --check-tensors (ggml_validate_row_data). The check runs before the file is
written, and the error names the tensor and the element.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from ..errors import BadInput
from .gguf_header import TensorInfo

FLOATS = {  # the integer type of the same size, and the exponent bits, which are all set in NaN and infinity
    Type.F16: ("<u2", 0x7C00),
    Type.BF16: ("<u2", 0x7F80),
    Type.F32: ("<u4", 0x7F800000),
}
SCALES = {  # the byte offsets of the f16 scales in a block
    **dict.fromkeys((Type.Q1_0, Type.Q4_0, Type.Q5_0, Type.Q8_0, Type.IQ4_NL, Type.IQ4_XS), (0,)),
    **dict.fromkeys((Type.IQ1_S, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S), (0,)),
    **dict.fromkeys((Type.Q4_1, Type.Q5_1, Type.Q8_1, Type.Q4_K, Type.Q5_K), (0, 2)),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q6_K: (208,),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
}


def check_finite(info: TensorInfo, offset: int, data: bytes | bytearray) -> None:
    """Check some blocks of a tensor; `data` starts `offset` bytes after the start of the tensor.

    Raises BadInput that names the first element, or block, that is NaN or infinite.
    """
    block, block_bytes = GGML_QUANT_SIZES[info.type]
    bad = _non_finite(info.type, block_bytes, np.frombuffer(data, np.uint8))
    if bad is None or not bad.any():
        return
    first = offset // block_bytes + int(bad.argmax())
    place = f"element {first}" if block == 1 else f"the scale of elements {first * block} to {(first + 1) * block - 1}"
    raise BadInput(
        f"{place} is NaN or infinite",
        path=info.path,
        field=f"tensor '{info.name}'",
        next_step="get the model again, or add --allow-nonfinite",
    )


def _non_finite(type: Type, block_bytes: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
    """Return for each block whether one of its floats is NaN or infinite; None for types without floats."""
    if type in FLOATS:
        word, exponent = FLOATS[type]
        bits = data.view(word) & np.array(exponent, word)
        return _equal(bits, exponent) if bits.max(initial=0) == exponent else None
    if type == Type.F64:
        with np.errstate(over="ignore", invalid="ignore"):
            return _non_finite_floats(data.view("<f8").astype("<f4"))  # llama.cpp computes in f32
    blocks = data.reshape(-1, block_bytes)
    if type in SCALES:
        first, *second = (_non_finite_f16(_words(blocks, offset)) for offset in SCALES[type])
        return first | second[0] if second else first
    if type == Type.Q8_K:
        return _non_finite_floats(np.ascontiguousarray(blocks[:, :4]).view("<f4")[:, 0])
    if type == Type.IQ1_M:  # four bits of the scale in each of four words; the exponent is in the last two
        high, low = _words(blocks, 54) & np.uint16(0xF000), _words(blocks, 52) >> np.uint16(4) & np.uint16(0x0F00)
        return _non_finite_f16(high | low)
    if type == Type.MXFP4:
        return _equal(blocks[:, 0], 0xFF)
    return None


def _non_finite_floats(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    is_finite: npt.NDArray[np.bool_] = np.isfinite(numbers)
    return ~is_finite


def _equal(numbers: npt.NDArray[Any], number: int) -> npt.NDArray[np.bool_]:
    equal: npt.NDArray[np.bool_] = numbers == numbers.dtype.type(number)
    return equal


def _words(blocks: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.uint16]:
    words: npt.NDArray[np.uint16] = np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<u2")[:, 0]
    return words


def _non_finite_f16(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    return _equal(words & np.uint16(0x7C00), 0x7C00)
