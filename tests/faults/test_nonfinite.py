"""Weights that are NaN or infinite, in floats and in the scales of all block types: refused with tensor and place."""

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from shareatt_export.errors import BadInput
from shareatt_export.formats.finite import check_finite
from shareatt_export.formats.gguf_header import TensorInfo
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.graph_callback import ggml_base
from tests.support import small_gguf
from tests.support.faults.gguf_bytes import with_tensors

pytestmark = pytest.mark.fault("H")

Type = GGMLQuantizationType
BAD = {"NaN": float("nan"), "+Inf": float("inf"), "-Inf": float("-inf")}
TENSOR, SHAPE = "blk.8.ffn_up.weight", (256, 4096)  # more than a chunk of F32


def encoded(type: Type, number: float) -> bytes:
    if type == Type.BF16:
        return struct.pack("<f", number)[2:]
    return struct.pack({Type.F32: "<f", Type.F16: "<e", Type.F64: "<d"}.get(type, "<e"), number)


def model(folder: Path, type: Type) -> Path:
    """Write a model in which one tensor has the given type, filled with zeros."""
    path = small_gguf.write_dense(folder / "f32.gguf")
    return with_tensors(path, folder / "dense.gguf", [TENSOR], **{TENSOR.replace(".", "__"): (SHAPE, type)})


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(read_header(path).tensors[TENSOR].offset + at)
        file.write(data)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("type", [Type.F32, Type.F16, Type.BF16, Type.F64], ids=lambda type: type.name)
def test_floats(run, refuses, tmp_path, type, bad):
    """The bad value is the first element, just after a chunk, or the last element."""
    path, last = model(tmp_path, type), SHAPE[0] * SHAPE[1] - 1
    for element in (0, 700_001, last):
        n_bytes = GGML_QUANT_SIZES[type][1]
        put(path, element * n_bytes, encoded(type, BAD[bad]))
        error = refuses(path, "--spans", "6-9", "-o", tmp_path / "out.gguf")
        where = f"tensor '{TENSOR}': element {element} is NaN or infinite"
        assert f"{path}: {where}; get the model again, or add --allow-nonfinite" in error
        put(path, element * n_bytes, bytes(n_bytes))
    assert run(path, "--spans", "6-9", "-o", tmp_path / "out.gguf").status == 0


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("type", "at"), [(Type.Q4_0, 0), (Type.Q8_0, 0), (Type.Q8_1, 2), (Type.Q4_K, 2), (Type.Q6_K, 208), (Type.IQ4_NL, 0)]
)
def test_scales(refuses, tmp_path, type, at, bad):
    path, (block, block_bytes) = model(tmp_path, type), GGML_QUANT_SIZES[type]
    last = SHAPE[0] * SHAPE[1] // block - 1
    put(path, last * block_bytes + at, encoded(type, BAD[bad]))
    error = refuses(path, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    where = f"the scale of elements {last * block} to {last * block + block - 1} is NaN or infinite"
    assert f"{path}: tensor '{TENSOR}': {where}" in error


@pytest.mark.parametrize("type", [type for type in Type if type != Type.Q8_1], ids=lambda type: type.name)
def test_every_type_as_llama_cpp_sees_it(built, type):
    """Compare with ggml_validate_row_data on 2,000 blocks of random bytes. It does not know Q8_1 in files."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    validate = ggml_base(built.bin).ggml_validate_row_data
    validate.argtypes, validate.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_bool
    blocks = np.random.default_rng(int(type)).integers(0, 256, (2000, block_bytes), dtype=np.uint8)
    seen = set()
    for data in map(bytes, blocks):
        info = TensorInfo("t", (block,), type, Path("file"), 0, block_bytes)
        try:
            check_finite(info, 0, data)
            finite = True
        except BadInput:
            finite = False
        assert finite == validate(int(type), data, block_bytes)
        seen.add(finite)
    assert True in seen


@pytest.mark.parametrize("number", [5e-324, 1e-40, 6e-8, 65504.0, 3.4e38, -0.0])
def test_small_and_great_numbers_are_allowed(run, tmp_path, number):
    path = model(tmp_path, Type.F64)
    put(path, 80, struct.pack("<d", number))
    assert run(path, "--spans", "6-9", "-o", tmp_path / "out.gguf").status == 0


def test_allowed_by_the_user(run, tmp_path):
    path = model(tmp_path, Type.F16)
    put(path, 20, encoded(Type.F16, float("nan")))
    done = run(path, "--spans", "6-9", "-o", tmp_path / "out.gguf", "--allow-nonfinite")
    assert done.status == 0 and done.stdout == f"{tmp_path / 'out.gguf'}\n"
