"""Verification of an SA file against the dense file: changed bytes, metadata and tensors are found."""

from pathlib import Path

import pytest

from shareatt_export.errors import BadInput, VerifyFailed
from shareatt_export.exporting.verify import verify
from shareatt_export.formats.gguf_encode import raw_u32
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf
from tests.support.exports import export


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf", bias=True)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_sees_one_flipped_bit(dense, tmp_path):
    out = export(dense, tmp_path / "out.gguf")
    for info in read_header(out).tensors.values():
        flip(out, info.offset + info.n_bytes // 2)
        with pytest.raises(VerifyFailed, match=f"tensor '{info.name}': its bytes differ"):
            verify(out, dense)
        flip(out, info.offset + info.n_bytes // 2)
    verify(out, dense)


def test_verify_sees_another_dense_file(dense, tmp_path):
    out = export(dense, tmp_path / "out.gguf")
    # this tensor is dropped, so only the hash of the source can show the change
    query = read_header(dense).tensors["blk.8.attn_q.weight"]
    flip(dense, query.offset)
    with pytest.raises(VerifyFailed, match=r"shareatt\.source\.blake3.*another dense file"):
        verify(out, dense)


def test_verify_sees_changed_metadata(dense, tmp_path):
    out = export(dense, tmp_path / "out.gguf")
    for change, message in [
        ({"llama__context_length": raw_u32(64)}, "'llama.context_length': differs from what"),
        ({"llama__context_length": None}, "llama.context_length: expected an integer"),
        ({"test__words": None}, "'test.words': is missing"),
        ({"test__more": raw_u32(1)}, "'test.more': should not be there"),
    ]:
        bad = small_gguf.with_metadata(out, tmp_path / "bad.gguf", **change)
        with pytest.raises((VerifyFailed, BadInput), match=message):
            verify(bad, dense)


def test_verify_sees_a_wrong_inventory(dense, tmp_path):
    out = export(dense, tmp_path / "out.gguf")
    with pytest.raises(VerifyFailed, match="is missing, or no layer shares"):
        verify(dense, dense)
    shared = read_header(out).metadata["llama.attention.shared_attn.source_layers"]
    marked = small_gguf.with_metadata(
        dense,
        tmp_path / "m.gguf",
        llama__attention__shared_attn__source_layers=shared,
        shareatt__format_version=raw_u32(1),
    )
    with pytest.raises(
        VerifyFailed, match=r"tensor 'blk\.7\.attn_q\.weight': is in the place of 'blk\.7\.attn_v\.weight'"
    ):
        verify(marked, dense)
