"""Small files that claim huge contents. A child process with limited memory and processor time must refuse them.

A child starts with about 90 MB; it may allocate what the limit leaves beside that.
"""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults.checkpoint_folders import checkpoint
from tests.support.faults.folder_state import folder_state
from tests.support.faults.gguf_bytes import ARCH, ARRAY, STRING, U8, array, gguf_file, kv, string, tensor

pytestmark = pytest.mark.fault("D")

MEMORY = 256 << 20  # bytes of data: heap and anonymous maps
SECONDS = 4  # of processor time: 1 for the header, and what Python takes to start on a busy machine


def sparse(head: bytes, size: int) -> object:
    def build(path: Path) -> None:
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)

    return build


def whole(data: bytes) -> object:
    return lambda path: path.write_bytes(data)


def of_json(**texts: str) -> object:
    """Write a checkpoint in which some JSON files have the given texts."""

    def build(path: Path) -> None:
        checkpoint(path)
        for name, text in texts.items():
            (path / f"{name}.json").write_text(text)

    return build


def fat_header(path: Path) -> None:
    checkpoint(path)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100 << 20))
        file.truncate(200 << 20)


def deep_header(path: Path) -> None:
    checkpoint(path)
    header = b'{"a":' + b"[" * 1_000_000
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def fifo_as_weights(path: Path) -> None:
    checkpoint(path)
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


DEEP = b"".join(array(ARRAY, 1) for _ in range(5000))
HEAD = {
    "a billion numbers": gguf_file(kvs=[ARCH, kv("a", ARRAY, array(U8, 10**9))]),
    "a string of 1 GiB": gguf_file(kvs=[ARCH, kv("a", STRING, struct.pack("<Q", 1 << 30))]),
    "a billion strings": gguf_file(kvs=[ARCH, kv("a", ARRAY, array(STRING, 10**9))]),
}
TAGS = kv("general.tags", ARRAY, array(U8, 30 << 20, bytes(30 << 20)))
BOMBS = {
    "an array of a billion": (whole(HEAD["a billion numbers"]), "a: needs 1000000000 bytes"),
    "a billion in a sparse file": (sparse(HEAD["a billion numbers"], 2 << 30), "a: 1000000000 bytes are more than"),
    "a string of 1 GiB in a sparse file": (sparse(HEAD["a string of 1 GiB"], 2 << 30), "a: 1073741824 bytes are more"),
    "a billion strings in a sparse file": (
        sparse(HEAD["a billion strings"], 20 << 30),
        "a: 1000000000 strings are more than",
    ),
    "arrays in arrays": (whole(gguf_file(kvs=[ARCH, kv("a", ARRAY, DEEP)])), "a: an array of arrays"),
    "ten million keys": (
        whole(gguf_file(kvs=[kv("", U8, b"\0")] * 100, n_kv=10**7)),
        "metadata counts: 0 and 10000000",
    ),
    "a million tensors": (whole(gguf_file(tensor() * 100, n_tensors=10**6)), "metadata counts: 1000000 and 0"),
    "65,536 tensors": (
        whole(gguf_file(*(tensor(str(i), (1,), 0, 32 * i) for i in range(1 << 16)), data=bytes(32 << 16))),
        "general.architecture: expected a string",
    ),
    "a terabyte of zeros": (sparse(gguf_file(tensor(shape=(1 << 37,))), 1 << 40), "general.architecture: expected"),
    "30 million tags": (whole(gguf_file(kvs=[kv("general.type", STRING, string("model")), TAGS])), "general.architect"),
    "two million empty strings": (
        whole(gguf_file(kvs=[kv("a", ARRAY, array(STRING, 1 << 21, bytes(8 << 21)))])),
        "general.architecture",
    ),
    "30 million layers": (
        whole(gguf_file(kvs=[ARCH, kv("llama.block_count", ARRAY, array(U8, 30 << 20, bytes(30 << 20)))])),
        "llama.block_count: 31457280 values, at most 65536",
    ),
    "a pipe": (fifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a safetensors header of 100 MB": (fat_header, "header length: 104857600 bytes, at most 8388608"),
    "JSON deeper than a stack, in a shard": (deep_header, "header: not JSON"),
    "JSON deeper than a stack": (of_json(config="[" * 1_000_000), "JSON: not JSON"),
    "an integer of a million digits": (of_json(config='{"a": ' + "9" * 1_000_000 + "}"), "JSON: not JSON: Exceeds"),
    "a config of 100 MB": (of_json(config=json.dumps({"a": "x" * 100_000_000})), "bytes, at most 4194304"),
    "a pipe as weights": (fifo_as_weights, "model.safetensors: shard: not a regular file"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    build, message = BOMBS[name]
    path = tmp_path / "bomb"
    build(path)
    before = folder_state(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    command = [sys.executable, "-m", "shareatt_export", str(path), "--spans", "0-1", "-o", str(tmp_path / "out.gguf")]
    child = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    (error,) = child.stderr.splitlines()
    assert child.returncode == 1 and error.startswith(f"Error: {path}") and message in error, error
    assert folder_state(tmp_path) == before
