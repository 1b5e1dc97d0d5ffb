"""The header reader agrees with the gguf package on correct files. tests/faults/test_container.py has broken files."""

import struct

import gguf
import pytest

from shareatt_export.errors import BadInput
from shareatt_export.formats.gguf_encode import header_bytes
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf


def test_not_a_regular_file(tmp_path):
    with pytest.raises(BadInput, match="not a regular file"):
        read_header(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        read_header(tmp_path / "none")


@pytest.mark.parametrize("q8_0", [False, True])
def test_agrees_with_the_gguf_package(tmp_path, q8_0):
    path = small_gguf.write_dense(tmp_path / "dense.gguf", q8_0=q8_0)
    header, oracle = read_header(path), gguf.GGUFReader(path)
    assert {key: field.contents() for key, field in oracle.fields.items() if not key.startswith("GGUF.")} == {
        key: raw.decode() for key, raw in header.metadata.items()
    }
    for theirs, ours in zip(oracle.tensors, header.tensors.values(), strict=True):
        assert (theirs.name, tuple(theirs.shape), theirs.tensor_type) == (ours.name, ours.shape, ours.type)
        assert (theirs.data_offset, theirs.n_bytes) == (ours.offset, ours.n_bytes)


def test_encoder_writes_the_very_bytes_it_read(tmp_path):
    path = small_gguf.write_dense(tmp_path / "dense.gguf")
    header = read_header(path)
    written = header_bytes(header.version, header.metadata, header.tensors.values(), header.alignment)
    assert written == path.read_bytes()[: header.data_offset]


def test_smallest_file_byte_for_byte(tmp_path):
    path = tmp_path / "golden.gguf"
    path.write_bytes(
        b"GGUF\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0"
        b"\x01\0\0\0\0\0\0\0" + b"k" + b"\x04\0\0\0" + b"\x07\0\0\0"
        b"\x01\0\0\0\0\0\0\0" + b"t" + b"\x01\0\0\0" + b"\x02\0\0\0\0\0\0\0" + b"\0\0\0\0" + bytes(8)
        + bytes(22) + struct.pack("<2f", 1, 2)
    )  # fmt: skip
    header = read_header(path)
    assert header.value("k") == 7 and header.data_offset == 96
    assert (header.tensors["t"].shape, header.tensors["t"].offset, header.tensors["t"].n_bytes) == ((2,), 96, 8)
