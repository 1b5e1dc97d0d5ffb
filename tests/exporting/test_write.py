"""Export of a dense GGUF: which tensors are dropped, which stay byte for byte, and that the input never changes."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from shareatt_export.formats.gguf_encode import header_bytes
from shareatt_export.formats.gguf_header import TensorInfo, pad
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf
from tests.support.exports import export, plan_of

MAP = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf", bias=True)


def test_inventory_by_the_oracle(dense, tmp_path):
    """The reader of the gguf package finds all tensors but Q and K of layers 7, 8 and 9, with the same bytes."""
    before = {t.name: t for t in gguf.GGUFReader(dense).tensors}
    after = {t.name: t for t in gguf.GGUFReader(export(dense, tmp_path / "out.gguf")).tensors}
    dropped = {f"blk.{i}.attn_{x}.{s}" for i in (7, 8, 9) for x in "qk" for s in ("weight", "bias")}
    assert before.keys() - after.keys() == dropped and after.keys() <= before.keys()
    assert all(np.array_equal(tensor.data, before[name].data) for name, tensor in after.items())
    assert list(after) == [name for name in before if name in after]


def test_metadata_by_the_oracle(dense, tmp_path):
    fields = gguf.GGUFReader(export(dense, tmp_path / "out.gguf")).fields
    value = {key: field.contents() for key, field in fields.items()}
    assert value["llama.attention.shared_attn.source_layers"] == MAP
    assert fields["llama.attention.shared_attn.source_layers"].types[1] == gguf.GGUFValueType.INT32
    assert value["shareatt.format_version"] == 1 and value["shareatt.spans"] == "6-9"
    assert value["shareatt.exporter"].startswith("shareatt-export ")
    assert len(value["shareatt.source.blake3"]) == 64 and set(value["shareatt.source.blake3"]) != {"0"}
    assert value["general.name"] == "Small SA6-9" and value["general.architecture"] == "llama"
    assert value["general.tags"] == ["one", "two", "shared-attention"]
    assert value["general.base_model.0.name"] == "Small" and value["general.base_model.0.organization"] == "Test"
    assert value["general.size_label"] == "281K"
    assert value["test.words"] == ["a", "", "längs"] and value["test.numbers"] == [1, 2, 3]


@pytest.mark.parametrize("q8_0", [False, True])
def test_fused_qkv_keeps_the_rows_of_v(tmp_path, q8_0):
    """Rows are cut out of quantised data byte for byte."""
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", fused=True, q8_0=q8_0, bias=True)
    before = {t.name: t.data for t in gguf.GGUFReader(dense).tensors}
    after = {t.name: t.data for t in gguf.GGUFReader(export(dense, tmp_path / "out.gguf")).tensors}
    assert "blk.7.attn_qkv.weight" not in after and "blk.6.attn_qkv.weight" in after
    assert np.array_equal(after["blk.7.attn_v.weight"], before["blk.7.attn_qkv.weight"][96:])
    assert np.array_equal(after["blk.7.attn_v.bias"], before["blk.7.attn_qkv.bias"][96:])


def test_every_tensor_type_goes_through(dense, tmp_path):
    header = read_header(dense)
    rng = np.random.default_rng(0)
    extra = {}
    for kind in gguf.GGMLQuantizationType:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        tensor = TensorInfo(f"blk.7.{kind.name}.weight", (256, 3), kind, dense, 0, 256 // block * 3 * block_bytes)
        extra[tensor] = rng.bytes(tensor.n_bytes)
    dense_bytes = dense.read_bytes()[header.data_offset :]
    every = tmp_path / "every.gguf"
    head = header_bytes(3, header.metadata, [*header.tensors.values(), *extra], 32)
    every.write_bytes(head + dense_bytes + b"".join(data.ljust(pad(len(data), 32), b"\0") for data in extra.values()))
    out = export(every, tmp_path / "out.gguf", allow_nonfinite=True)  # some of the random bytes are NaN or infinite
    after = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    assert all(after[tensor.name].tobytes() == data for tensor, data in extra.items())


def test_same_input_same_bytes(dense, tmp_path):
    first = export(dense, tmp_path / "first.gguf").read_bytes()
    assert export(dense, tmp_path / "second.gguf", "6:7-9").read_bytes() == first
    (piece,) = plan_of(dense).pieces()
    assert piece.file_size == len(first)


def test_dense_is_only_read(dense, tmp_path):
    before = dense.read_bytes(), dense.stat().st_mtime_ns
    dense.chmod(0o444)
    export(dense, tmp_path / "out.gguf")
    assert (dense.read_bytes(), dense.stat().st_mtime_ns) == before


def test_more_spans_make_the_file_that_all_at_once_make(dense, tmp_path):
    first, all_at_once = export(dense, tmp_path / "1.gguf"), export(dense, tmp_path / "2.gguf", "1-2,6-9,10:11")
    second = export(first, tmp_path / "3.gguf", "1-2,10:11")
    assert second.read_bytes() == all_at_once.read_bytes()
    longer = export(first, tmp_path / "4.gguf", "6:10")
    assert longer.read_bytes() == export(dense, tmp_path / "5.gguf", "6:7-10").read_bytes()


# ---------------------------------------------------------------- verify


def test_memory_does_not_grow_with_the_model(tmp_path):
    """The export of a sparse model of 1 GiB needs as much memory as that of a small one."""
    script = (
        "import resource, sys; from tests.support.exports import export; from pathlib import Path;"
        "export(Path(sys.argv[1]), Path(sys.argv[2])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    header = read_header(small_gguf.write_dense(tmp_path / "dense.gguf"))
    big = tmp_path / "big.gguf"
    rows = gguf.GGMLQuantizationType.F32
    shape = (64, 1 << 22)
    tensors = [(name, info.shape, info.type, info.n_bytes) for name, info in header.tensors.items()]
    tensors[0] = ("token_embd.weight", shape, rows, 64 * (1 << 22) * 4)
    fake = [type("T", (), dict(zip(("name", "shape", "type", "n_bytes"), t, strict=True))) for t in tensors]
    with big.open("wb") as file:
        head = header_bytes(3, header.metadata, fake, 32)
        file.write(head)
        file.truncate(len(head) + sum(t[3] for t in tensors))
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, path, tmp_path / f"{path.stem}-out.gguf"],
                           check=True, capture_output=True, cwd=Path(__file__).parents[2]).stdout)
        for path in (header.path, big)
    ]  # fmt: skip
    assert peaks[1] - peaks[0] < 64 << 10  # KiB
