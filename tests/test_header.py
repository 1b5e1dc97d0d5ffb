"""The header reader: agrees with the gguf package on sound files, refuses every malformed one with one clear error."""

import struct

import gguf
import numpy as np
import pytest

from shareatt_export.encode import header_bytes
from shareatt_export.errors import BadInput, ShareattError, Unsupported
from shareatt_export.header import read_header

from . import small

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def kv(key, type, raw):
    return string(key) + struct.pack("<I", type) + raw


def tensor(name="a", shape=(4,), type=0, offset=0):
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type, offset)


def gguf_file(*entries, kvs=(), magic=b"GGUF", version=3, n_tensors=None, n_kv=None, data=bytes(64), align=32):
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", len(entries) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv)
    head += b"".join(kvs) + b"".join(entries)
    return head.ljust(-(-len(head) // align) * align, b"\0") + data


ARCH = kv("general.architecture", STRING, string("llama"))

MALFORMED = {
    "empty file": (b"", "magic"),
    "three bytes": (b"GGU", "magic"),
    "wrong magic": (gguf_file(magic=b"GGML"), "not a GGUF file"),
    "version 1": (gguf_file(version=1), "version 1;"),
    "version 4": (gguf_file(version=4), "version 4;"),
    "big-endian": (gguf_file(version=3 << 24), "a big-endian file"),
    "too many tensors": (gguf_file(n_tensors=1 << 40), "implausible"),
    "too many keys": (gguf_file(n_kv=1 << 40), "implausible"),
    "more tensors than there are": (gguf_file(n_tensors=5), "tensor"),
    "more keys than there are": (gguf_file(kvs=[ARCH], n_kv=9), ""),
    "empty key": (gguf_file(kvs=[kv("", U32, bytes(4))]), "metadata key: empty"),
    "key with NUL": (gguf_file(kvs=[kv("a\0b", U32, bytes(4))]), "NUL"),
    "key not UTF-8": (gguf_file(kvs=[kv(b"\xff", U32, bytes(4))]), "not UTF-8"),
    "key longer than the file": (gguf_file(kvs=[struct.pack("<Q", 1 << 62)]), "longer than llama.cpp allows"),
    "key twice": (gguf_file(kvs=[ARCH, ARCH]), "stands twice"),
    "unknown value type": (gguf_file(kvs=[kv("a", 13, bytes(4))]), "unknown type 13"),
    "bool of 2": (gguf_file(kvs=[kv("a", 7, b"\2")]), "a bool with the value 2"),
    "string longer than the file": (gguf_file(kvs=[kv("a", STRING, struct.pack("<Q", 1 << 29))]), "needs"),
    "string not UTF-8": (gguf_file(kvs=[kv("a", STRING, string(b"\xff"))]), "a: not UTF-8"),
    "array longer than the file": (gguf_file(kvs=[kv("a", ARRAY, struct.pack("<IQ", 0, 10**9))]), "needs"),
    "strings longer than the file": (gguf_file(kvs=[kv("a", ARRAY, struct.pack("<IQ", STRING, 10**9))]), "do not fit"),
    "array of unknown type": (gguf_file(kvs=[kv("a", ARRAY, struct.pack("<IQ", 99, 1))]), "unknown type 99"),
    "array of arrays": (gguf_file(kvs=[kv("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "an array of arrays"),
    "alignment of 0": (gguf_file(kvs=[kv("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment of 48": (gguf_file(kvs=[kv("general.alignment", U32, struct.pack("<I", 48))]), "power of two"),
    "alignment as f32": (gguf_file(kvs=[kv("general.alignment", F32, struct.pack("<f", 32))]), "power of two"),
    "tensor name of 64 bytes": (gguf_file(tensor("n" * 64)), "name longer than 63"),
    "tensor name with NUL": (gguf_file(tensor("a\0b")), "NUL"),
    "empty tensor name": (gguf_file(tensor("")), "empty"),
    "five dimensions": (gguf_file(tensor(shape=(1,) * 5)), "5 dimensions"),
    "dimension of 0": (gguf_file(tensor(shape=(4, 0))), "bad shape"),
    "elements overflow": (gguf_file(tensor(shape=(1 << 40, 1 << 40))), "bad shape"),
    "unknown tensor type": (gguf_file(tensor(type=4)), "unknown type 4"),
    "part of a block": (gguf_file(tensor(shape=(33,), type=8)), "no whole number of Q8_0 blocks"),
    "unaligned offset": (gguf_file(tensor(offset=16)), "offset 16, expected 0"),
    "gap": (gguf_file(tensor("a"), tensor("b", offset=64), data=bytes(128)), "offset 64, expected 32"),
    "overlap": (gguf_file(tensor("a"), tensor("b", offset=0)), "offset 0, expected 32"),
    "offset wraps": (gguf_file(tensor(offset=1 << 63)), "expected 0"),
    "tensor twice": (gguf_file(tensor("a"), tensor("a", offset=32)), "stands twice"),
    "data truncated": (gguf_file(tensor(shape=(17,))), "behind the end"),
    "no data": (gguf_file(tensor(), data=b""), "behind the end"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tmp_path, name):
    data, message = MALFORMED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data[:-64] if name == "data truncated" else data)
    with pytest.raises((BadInput, Unsupported)) as error:
        read_header(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_every_prefix_is_refused(tmp_path):
    """A truncated file never looks like a whole one."""
    path = tmp_path / "cut.gguf"
    whole = gguf_file(tensor("a", (8,)), tensor("b", (4, 2), offset=32), kvs=[ARCH], data=bytes(64))
    path.write_bytes(whole)
    assert list(read_header(path).tensors) == ["a", "b"]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            read_header(path)


def test_flipped_bits_raise_nothing_else(tmp_path):
    path = tmp_path / "flipped.gguf"
    whole = bytearray(small.write_dense(tmp_path / "dense.gguf").read_bytes()[:6000])
    size = read_header(tmp_path / "dense.gguf").file_size
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] ^= 1 << rng.integers(8)
        with path.open("wb") as file:
            file.write(data)
            file.truncate(size)
        try:
            read_header(path)
        except ShareattError as error:
            assert str(path) in str(error)


def test_not_a_regular_file(tmp_path):
    with pytest.raises(BadInput, match="not a regular file"):
        read_header(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        read_header(tmp_path / "none")


@pytest.mark.parametrize("q8_0", [False, True])
def test_agrees_with_the_gguf_package(tmp_path, q8_0):
    path = small.write_dense(tmp_path / "dense.gguf", q8_0=q8_0)
    header, oracle = read_header(path), gguf.GGUFReader(path)
    assert {key: field.contents() for key, field in oracle.fields.items() if not key.startswith("GGUF.")} == {
        key: raw.decode() for key, raw in header.metadata.items()
    }
    for theirs, ours in zip(oracle.tensors, header.tensors.values(), strict=True):
        assert (theirs.name, tuple(theirs.shape), theirs.tensor_type) == (ours.name, ours.shape, ours.type)
        assert (theirs.data_offset, theirs.n_bytes) == (ours.offset, ours.n_bytes)


def test_encoder_writes_the_very_bytes_it_read(tmp_path):
    path = small.write_dense(tmp_path / "dense.gguf")
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
