"""Files that are not GGUF, broken GGUF files, and GGUF files of other kinds."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shareatt_export.formats.gguf_encode import header_bytes, raw_string, raw_u32
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf
from tests.support.faults.gguf_bytes import (
    ARCH,
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    array,
    gguf_file,
    kv,
    string,
    tensor,
)
from tests.support.lora_adapters import write_lora

pytestmark = pytest.mark.fault("A")

AGAIN = "the file is damaged: get it or make it again"
LATER = "get the file again, or a later version of this tool"
NAME_ANOTHER = "name a GGUF or a folder"
CONVERT = "make it again with a current llama.cpp"


@dataclass(frozen=True)
class Bad:
    data: bytes
    field: str
    step: str = AGAIN


def with_kv(key: str | bytes, type: int, raw: bytes) -> bytes:
    return gguf_file(kvs=[ARCH, kv(key, type, raw)])


BYTES = {
    "empty file": Bad(b"", "magic: needs 4 bytes"),
    "three bytes": Bad(b"GGU", "magic: needs 4 bytes"),
    "magic alone": Bad(b"GGUF", "version: needs 4 bytes"),
    "wrong magic": Bad(gguf_file(magic=b"GGML"), "magic: not a GGUF", NAME_ANOTHER),
    "legacy GGML": Bad(b"lmgg" + bytes(100), "magic: not a GGUF", NAME_ANOTHER),
    "legacy GGJT": Bad(b"tjgg" + bytes(100), "magic: not a GGUF", NAME_ANOTHER),
    "safetensors": Bad(struct.pack("<Q", 2) + b"{}", "magic: not a GGUF", NAME_ANOTHER),
    "LFS pointer": Bad(
        b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "run 'git lfs pull' in its folder"
    ),
    "a zip, as torch saves it": Bad(b"PK\x03\x04" + bytes(100), "magic: not a GGUF", NAME_ANOTHER),
    "version 0": Bad(gguf_file(version=0), "version: 0,", CONVERT),
    "version 1": Bad(gguf_file(version=1), "version: 1,", CONVERT),
    "version 4": Bad(gguf_file(version=4), "version: 4,", CONVERT),
    "big-endian": Bad(gguf_file(version=3 << 24), "(a big-endian file)", CONVERT),
    "too many tensors": Bad(gguf_file(n_tensors=1 << 40), "tensor and metadata counts"),
    "too many keys": Bad(gguf_file(n_kv=1 << 63), "tensor and metadata counts"),
    "more tensors than there are": Bad(gguf_file(n_tensors=5), "tensor"),
    "more keys than there are": Bad(gguf_file(kvs=[ARCH], n_kv=9), "metadata key"),
    "empty key": Bad(with_kv("", U32, bytes(4)), "metadata key: empty"),
    "key with NUL": Bad(with_kv("a\0b", U32, bytes(4)), "metadata key: empty or with a NUL"),
    "key not UTF-8": Bad(with_kv(b"\xff", U32, bytes(4)), "metadata key: not UTF-8"),
    "key longer than the file": Bad(gguf_file(kvs=[struct.pack("<Q", 1 << 20)]), "metadata key: needs"),
    "key longer than anything": Bad(gguf_file(kvs=[struct.pack("<Q", 1 << 62)]), "longer than llama.cpp allows"),
    "key twice": Bad(gguf_file(kvs=[ARCH, ARCH]), "metadata key 'general.architecture': appears twice"),
    "unknown value type": Bad(with_kv("a", 13, bytes(4)), "a: unknown type 13", LATER),
    "bool of 2": Bad(with_kv("a", BOOL, b"\2"), "a: a bool with the value 2"),
    "string longer than the file": Bad(with_kv("a", STRING, struct.pack("<Q", 1 << 29)), "a: needs"),
    "string not UTF-8": Bad(with_kv("a", STRING, string(b"\xff")), "a: not UTF-8"),
    "array longer than the file": Bad(with_kv("a", ARRAY, array(U8, 10**9)), "a: needs"),
    "array longer than allowed": Bad(with_kv("a", ARRAY, array(U8, (1 << 30) + 1)), "a: 1073741825 is longer"),
    "array whose bytes wrap": Bad(with_kv("a", ARRAY, array(10, 1 << 61)), "longer than llama.cpp allows"),
    "strings longer than the file": Bad(with_kv("a", ARRAY, array(STRING, 10**9)), "do not fit"),
    "a string of an array too long": Bad(with_kv("a", ARRAY, array(STRING, 1, struct.pack("<Q", 999))), "a: needs"),
    "array of unknown type": Bad(with_kv("a", ARRAY, array(99, 1)), "a: unknown type 99", LATER),
    "array of arrays": Bad(with_kv("a", ARRAY, array(ARRAY, 1)), "a: an array of arrays"),
    "alignment of 0": Bad(with_kv("general.alignment", U32, bytes(4)), "general.alignment: must be"),
    "alignment of 48": Bad(with_kv("general.alignment", U32, struct.pack("<I", 48)), "general.alignment: must be"),
    "alignment as f32": Bad(with_kv("general.alignment", F32, struct.pack("<f", 32)), "general.alignment: must be"),
    "alignment of 2^31": Bad(
        gguf_file(tensor(), kvs=[ARCH, kv("general.alignment", U32, struct.pack("<I", 1 << 31))]),
        "tensor 'a': its data ends after",
    ),
    "alignment as an array": Bad(
        with_kv("general.alignment", ARRAY, array(U32, 1, struct.pack("<I", 32))), "general.alignment: must be"
    ),
    "tensor name of 64 bytes": Bad(gguf_file(tensor("n" * 64)), "name longer than 63"),
    "tensor name with NUL": Bad(gguf_file(tensor("a\0b")), "tensor name: empty or with a NUL"),
    "empty tensor name": Bad(gguf_file(tensor("")), "tensor name: empty"),
    "five dimensions": Bad(gguf_file(tensor(shape=(1,) * 5)), "tensor 'a': 5 dimensions"),
    "2^32 - 1 dimensions": Bad(gguf_file(string("a") + b"\xff" * 4), "tensor 'a': 4294967295 dimensions"),
    "dimension of 0": Bad(gguf_file(tensor(shape=(4, 0))), "tensor 'a': bad shape"),
    "elements overflow": Bad(gguf_file(tensor(shape=(1 << 40, 1 << 40))), "tensor 'a': bad shape"),
    "negative dimension": Bad(gguf_file(tensor(shape=((1 << 64) - 4,))), "tensor 'a': bad shape"),
    "bytes overflow": Bad(gguf_file(tensor(shape=(1 << 62,))), "tensor 'a': its data ends after"),
    "unknown tensor type": Bad(gguf_file(tensor(type=4)), "tensor 'a': unknown type 4", LATER),
    "part of a block": Bad(gguf_file(tensor(shape=(33,), type=8)), "not a whole number of Q8_0 blocks"),
    "unaligned offset": Bad(gguf_file(tensor(offset=16)), "tensor 'a': offset 16, expected 0"),
    "gap": Bad(gguf_file(tensor("a"), tensor("b", offset=64), data=bytes(128)), "tensor 'b': offset 64, expected 32"),
    "overlap": Bad(gguf_file(tensor("a"), tensor("b", offset=0)), "tensor 'b': offset 0, expected 32"),
    "in another order": Bad(gguf_file(tensor("a", offset=32), tensor("b")), "tensor 'a': offset 32, expected 0"),
    "offset wraps": Bad(gguf_file(tensor(offset=(1 << 64) - 32)), "tensor 'a': offset 18446744073709551584"),
    "tensor twice": Bad(gguf_file(tensor("a"), tensor("a", offset=32)), "tensor 'a': appears twice"),
    "data truncated": Bad(gguf_file(tensor(shape=(16,)))[:-1], "tensor 'a': its data ends after"),
    "no data": Bad(gguf_file(tensor(), data=b""), "tensor 'a': its data ends after"),
    "no architecture": Bad(gguf_file(tensor()), "general.architecture: expected a string, found nothing"),
    "architecture as a number": Bad(
        gguf_file(tensor(), kvs=[kv("general.architecture", I32, bytes(4))]), "general.architecture: expected a string"
    ),
    "no tensors": Bad(gguf_file(kvs=[ARCH], data=b""), "llama.block_count: expected an integer, found nothing"),
    "names that command a terminal": Bad(
        gguf_file(tensor("\x1b]0;title\x07", offset=64)), r"tensor '\x1b]0;title\x07': offset 64"
    ),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes(refuses, tmp_path, name):
    bad, path = BYTES[name], tmp_path / "bad.gguf"
    path.write_bytes(bad.data)
    error = refuses(path, "--spans", "0-1", "-o", tmp_path / "out.gguf")
    assert str(path) in error and bad.field in error and error.endswith(bad.step)


def clip(dense: Path, path: Path) -> Path:
    path.write_bytes(gguf_file(tensor(), kvs=[kv("general.architecture", STRING, string("clip"))]))
    return path


def of_type(kind: str) -> Callable[[Path, Path], Path]:
    return lambda dense, path: small_gguf.with_metadata(dense, path, general__type=raw_string(kind))


def vocabulary(dense: Path, path: Path) -> Path:
    header = read_header(dense)
    path.write_bytes(header_bytes(3, header.metadata, [], 32))
    return path


def shard(no: int, count: int, name: str) -> Callable[[Path, Path], Path]:
    def build(dense: Path, path: Path) -> Path:
        def u16(number: int) -> RawValue:
            return RawValue(type(raw_u32(0).type)(2), struct.pack("<H", number))

        return small_gguf.with_metadata(dense, path.with_name(name), split__no=u16(no), split__count=u16(count))

    return build


OTHER_KINDS = {
    "an encoder of images": (clip, "general.architecture: 'clip' is not supported: llama.cpp does not run it"),
    "a projector": (of_type("mmproj"), "general.type: is of type 'mmproj'; name the file of a language model"),
    "an adapter": (
        lambda dense, path: write_lora(path, ["blk.1.attn_v"]),
        "general.type: is of type 'adapter'; name the file of a language model",
    ),
    "an importance matrix": (
        small_gguf.write_imatrix,
        "general.type: is of type 'imatrix'; name the file of a language model",
    ),
    "a vocabulary": (vocabulary, "llama.block_count: 12, but there is no tensor of layer 0"),
    "the first shard alone": (shard(0, 2, "x-00001-of-00002.gguf"), "x-00002-of-00002.gguf: no such file"),
    "the second shard": (shard(1, 2, "x-00002-of-00002.gguf"), "split.no: shard 2 of 2; name the first one, x-00001"),
    "a shard with a name of its own": (shard(0, 2, "x.gguf"), "split.count: the first of 2 shards must be named"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_gguf(refuses, tmp_path, name):
    build, message = OTHER_KINDS[name]
    path = build(small_gguf.write_dense(tmp_path / "dense.gguf"), tmp_path / "bad.gguf")
    error = refuses(path, "--spans", "1-2", "-o", tmp_path / "out.gguf")
    assert str(path.parent) in error and message in error


def test_an_empty_folder(refuses, tmp_path):
    (tmp_path / "model").mkdir()
    error = refuses(tmp_path / "model", "--spans", "1-2", "-o", tmp_path / "out.gguf")
    assert f"{tmp_path / 'model'}: not a model: neither a GGUF file nor a folder with a config.json" in error


@pytest.mark.parametrize("name", ["n" * 63, "ä" * 31, "a b", "\x1b"])
def test_odd_names_of_tensors_are_kept(tmp_path, name):
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf_file(tensor(name)))
    assert list(read_header(path).tensors) == [name]


def test_bytes_behind_the_last_tensor_are_told_and_left_out(run, tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    assert run(dense, "--spans", "6-9", "-o", tmp_path / "a.gguf").status == 0
    with dense.open("ab") as file:
        file.write(b"PK\x03\x04 another file")
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "b.gguf")
    assert done.status == 0 and "leaves out: 17 bytes behind the last tensor" in done.stderr
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
