"""The one reader of safetensors headers: what it returns, and a long header in a sparse file."""

import struct

import pytest

from shareatt_export.checkpoint.safetensors import MAX_HEADER, StoredTensor, read_tensors
from shareatt_export.errors import BadInput
from tests.support.faults.checkpoint_folders import header_of, safetensors


def test_tensors_have_their_place_in_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    header = header_of({"a": ("F32", [4, 2]), "b": ("F32", [3, 1])})
    path.write_bytes(safetensors(header, 44))
    start = path.stat().st_size - 44
    assert read_tensors(path) == {
        "a": StoredTensor("a", "F32", (4, 2), start, 32),
        "b": StoredTensor("b", "F32", (3, 1), start + 32, 12),
    }


@pytest.mark.parametrize("first", [b"", b"{"])
def test_a_long_header_in_a_sparse_file(tmp_path, first):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER) + first)
        file.truncate(8 + MAX_HEADER)
    with pytest.raises(BadInput, match=f"{path}: header: not JSON: it has NUL bytes"):
        read_tensors(path)
