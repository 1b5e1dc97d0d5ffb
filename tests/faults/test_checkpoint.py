"""Broken Hugging Face folders, and folders that name files or code outside the model: refused before conversion."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shareatt_export.checkpoint.checks import check_files, check_no_code
from shareatt_export.errors import BadInput, Unsupported
from tests.support import tiny_models
from tests.support.faults.checkpoint_folders import checkpoint, header_of, n_bytes, safetensors, tensors, write

pytestmark = pytest.mark.fault("E")

INDEX = "model.safetensors.index.json"
AGAIN = "get the file again"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAME = next(iter(tensors()))
N_BYTES = n_bytes(tensors())

Build = Callable[[Path], object]


def header(change: Callable[[dict[str, Any]], object], extra: int = 0) -> Build:
    """A shard with a correct header but for one change, and with `extra` more bytes."""

    def build(folder: Path) -> None:
        head = header_of(tensors())
        change(head)
        (folder / "model.safetensors").write_bytes(safetensors(head, N_BYTES + extra))

    return build


def field(name: str, value: object) -> Build:
    return header(lambda head: head[NAME].update({name: value}))


def raw_header(text: str) -> Build:
    return lambda folder: (folder / "model.safetensors").write_bytes(safetensors(text, N_BYTES))


def raw_weights(data: bytes) -> Build:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def text(name: str, content: str) -> Build:
    return lambda folder: (folder / name).write_text(content)


def index(change: Callable[[dict[str, Any]], object]) -> Build:
    def build(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        change(data["weight_map"])
        (folder / INDEX).write_text(json.dumps(data))

    return build


def maps_to(name: object) -> Build:
    return index(lambda of: of.update({NAME: name}))


def links(name: str, target: str) -> Build:
    def build(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return build


def pickle(name: str) -> Build:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return build


def swap(*offsets: tuple[int, int]) -> Build:
    """Exchange the places of the first tensors, which keep their sizes."""

    def change(head: dict[str, Any]) -> None:
        for name, (begin, end) in zip(tensors(), offsets, strict=False):
            head[name]["data_offsets"] = [begin, end]

    return header(change)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
LFS = "a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder"
CODE = "brings code of its own"
TRUST = "if you trust it, add --trust-remote-code"
BEGIN_AND_END = f"'{NAME}': data_offsets: expected a begin and an end"
TO_CONVERT = "convert them to safetensors first"
ONE_FILE: dict[str, tuple[Build, str, str, str]] = {  # by the mistake: the change, the file, the field, the next step
    "no config": (lambda folder: (folder / "config.json").unlink(), "", "not a model", "folder with a config.json"),
    "config is empty": (text("config.json", ""), "config.json", "JSON: not JSON", AGAIN),
    "config is a list": (text("config.json", "[]"), "config.json", "JSON: expected a JSON object", AGAIN),
    "config is cut": (text("config.json", '{"num_hidden'), "config.json", "JSON: not JSON", AGAIN),
    "config is a pointer": (text("config.json", POINTER), "config.json", "", LFS),
    "config says a thing twice": (text("config.json", '{"a": 1, "a": 2}'), "config.json", "'a' appears twice", AGAIN),
    "config is not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), "config.json", "JSON", AGAIN),
    "layers as text": (text("config.json", '{"num_hidden_layers": "4"}'), "config.json", "num_hidden_layers", AGAIN),
    "no layers": (text("config.json", '{"num_hidden_layers": 0}'), "config.json", "num_hidden_layers: 0", AGAIN),
    "a billion layers": (text("config.json", '{"num_hidden_layers": 1e9}'), "config.json", "num_hidden_layers", AGAIN),
    "auto_map": (text("config.json", '{"auto_map": {}}'), "", f"{CODE} (auto_map in config.json)", TRUST),
    "auto_map of a tokenizer": (text("tokenizer_config.json", '{"auto_map": 1}'), "", "tokenizer_config.json", TRUST),
    "auto_map of a processor": (text("processor_config.json", '{"auto_map": 1}'), "", "processor_config.json", TRUST),
    "a module": (text("modeling_x.py", ""), "", f"{CODE} (modeling_x.py)", TRUST),
    "a module further down": (
        lambda f: ((f / "sub").mkdir(), text("sub/x.py", "")(f)),
        "",
        f"{CODE} (x.py)",
        TRUST,
    ),
    "only a pickle": (pickle("pytorch_model.bin"), "", "has only pickle weights", TO_CONVERT),
    "only a .pt": (pickle("model.pt"), "", "has only pickle weights", TO_CONVERT),
    "only a .pth": (pickle("consolidated.00.pth"), "", "has only pickle weights", TO_CONVERT),
    "a pickle beside the weights": (
        text("mask_embedding.pt", ""),
        "mask_embedding.pt",
        "a pickle, which the converter would read",
        "cannot be exported",
    ),
    "a pickle beside an adapter": (
        lambda f: (pickle("adapter.safetensors")(f), text("pytorch_model.bin", "")(f)),
        "",
        "has only pickle weights",
        TO_CONVERT,
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "", "no model*.safetensors in it", "download them"),
    "weights are a pointer": (raw_weights(POINTER.encode()), "model.safetensors", "", LFS),
    "weights are empty": (raw_weights(b""), "model.safetensors", "header length", AGAIN),
    "weights are a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "model.safetensors",
        "shard: not a regular file",
        AGAIN,
    ),
    "weights link outside": (links("model.safetensors", "../outside"), "model.safetensors", "links to", "copy the"),
    "config links outside": (links("config.json", "/etc/hostname"), "config.json", "links to", "copy the file there"),
    "header longer than the file": (raw_weights(b"\xff" * 7 + b"\0"), "model.safetensors", "header length", AGAIN),
    "header is no JSON": (raw_header("{"), "model.safetensors", "header: not JSON", AGAIN),
    "header is a list": (raw_header("[]"), "model.safetensors", "header: expected a JSON object", AGAIN),
    "a tensor twice": (
        raw_header('{"a": {}, "a": {}}'),
        "model.safetensors",
        "header: 'a' appears twice",
        AGAIN,
    ),
    "metadata of numbers": (
        header(lambda head: head["__metadata__"].update(format=1)),
        "model.safetensors",
        "__metadata__: expected an object with string values",
        AGAIN,
    ),
    "metadata is a list": (header(lambda h: h.update(__metadata__=[])), "model.safetensors", "__metadata__", AGAIN),
    "a tensor is a number": (header(lambda h: h.update(x=1)), "model.safetensors", "tensor 'x': expected dtype", AGAIN),
    "no dtype": (header(lambda head: head[NAME].pop("dtype")), "model.safetensors", f"tensor '{NAME}'", AGAIN),
    "unknown dtype": (field("dtype", "F31"), "model.safetensors", f"'{NAME}': dtype: F31 is not known", AGAIN),
    "dtype is a list": (field("dtype", []), "model.safetensors", f"'{NAME}': dtype", AGAIN),
    "shape does not fit": (field("shape", [4, 3]), "model.safetensors", f"'{NAME}': data_offsets: 32 bytes are", AGAIN),
    "dtype does not fit": (field("dtype", "F16"), "model.safetensors", f"'{NAME}': data_offsets: 32 bytes are", AGAIN),
    "negative shape": (
        field("shape", [-4, -2]),
        "model.safetensors",
        f"'{NAME}': shape: expected non-negative integers",
        AGAIN,
    ),
    "shape of truths": (
        field("shape", [True, 8]),
        "model.safetensors",
        f"'{NAME}': shape: expected non-negative integers",
        AGAIN,
    ),
    "shape overflows": (
        field("shape", [1 << 63, 2]),
        "model.safetensors",
        f"'{NAME}': shape: expected non-negative integers",
        AGAIN,
    ),
    "offsets reversed": (field("data_offsets", [32, 0]), "model.safetensors", BEGIN_AND_END, AGAIN),
    "one offset": (field("data_offsets", [32]), "model.safetensors", BEGIN_AND_END, AGAIN),
    "three offsets": (field("data_offsets", [0, 32, 32]), "model.safetensors", BEGIN_AND_END, AGAIN),
    "a hole": (swap((0, 32), (40, 72)), "model.safetensors", "begins at 40, expected 32", AGAIN),
    "an overlap": (swap((0, 32), (24, 56)), "model.safetensors", "begins at 24, expected 32", AGAIN),
    "bytes behind the tensors": (header(lambda head: None, 5), "model.safetensors", "data_offsets: the tensors", AGAIN),
    "tensors truncated": (header(lambda head: None, -1), "model.safetensors", "data_offsets: the tensors", AGAIN),
    "a tensor in two files": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-copy.safetensors"),
        ".safetensors",
        f"tensor '{NAME}': is also in",
        AGAIN,
    ),
    "an index of one file less": (text(INDEX, "{}"), INDEX, "weight_map: expected a JSON object", AGAIN),
    "an index that is a pointer": (text(INDEX, POINTER), INDEX, "", LFS),
}
TWO_FILES: dict[str, tuple[Build, str, str]] = {
    "above the folder": (maps_to("../model.safetensors"), INDEX, "'../model.safetensors' is not a file of this folder"),
    "absolute": (maps_to("/etc/passwd"), INDEX, "'/etc/passwd' is not a file of this folder"),
    "backslashes": (maps_to("a\\b"), INDEX, "is not a file of this folder"),
    "a number": (maps_to(7), INDEX, "'7' is not a file of this folder"),
    "with NUL": (maps_to("a\0b"), INDEX, "is not a file of this folder"),
    "a name of 5,000 letters": (maps_to("x" * 5000), INDEX, "is not a file of this folder"),
    "the folder itself": (maps_to("."), INDEX, "'.' is not a file of this folder"),
    "a missing shard": (lambda f: (f / SECOND).unlink(), INDEX, f"'{SECOND}' is not a file of this folder"),
    "an extra shard": (
        lambda f: write(f / "model-00003-of-00002.safetensors", {"x": ("F32", [1, 1])}),
        INDEX,
        "model-00003-of-00002.safetensors is not in it",
    ),
    "the same shard twice": (lambda f: shutil.copy(f / FIRST, f / SECOND), SECOND, f"is also in {FIRST}"),
    "a tensor that no shard has": (
        index(lambda of: of.update(x=FIRST)),
        INDEX,
        f"the index places 'x' in {FIRST}, but it is in no file",
    ),
    "a tensor that the index has not": (
        index(lambda of: of.pop(NAME)),
        INDEX,
        f"the index places '{NAME}' in no file, but it is in",
    ),
    "a tensor in another shard": (
        maps_to(SECOND),
        INDEX,
        f"the index places '{NAME}' in {SECOND}, but it is in {FIRST}",
    ),
    "weight_map is a list": (text(INDEX, '{"weight_map": []}'), INDEX, "weight_map: expected a JSON object"),
    "a shard links outside": (links(FIRST, "../outside"), FIRST, "links to"),
    "a shard that is cut": (lambda f: os.truncate(f / FIRST, 300), FIRST, "data_offsets: the tensors have"),
}


def test_the_folders_are_sound_before_they_are_broken(tmp_path):
    for folder in (checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", 2)):
        assert check_files(folder) == 4
        check_no_code(folder)


@pytest.mark.parametrize("name", ONE_FILE)
def test_one_file(refuses, tmp_path, name):
    build, file, where, step = ONE_FILE[name]
    folder = checkpoint(tmp_path / "model")
    build(folder)
    error = refuses(folder, "--spans", "0-1", "-o", tmp_path / "out.gguf")
    assert str(folder) in error and file in error and where in error and step in error


@pytest.mark.parametrize("name", TWO_FILES)
def test_two_files(refuses, tmp_path, name):
    build, file, where = TWO_FILES[name]
    folder = checkpoint(tmp_path / "model", 2)
    build(folder)
    error = refuses(folder, "--spans", "0-1", "-o", tmp_path / "out.gguf")
    assert f"{folder / file}: " in error and where in error


def test_files_of_the_hubs_cache_are_links(tmp_path):
    """The cache of the hub has links: snapshots/COMMIT/config.json -> ../../blobs/..."""
    repo, folder = tmp_path / "models--org--name", tmp_path / "models--org--name" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    checkpoint(repo / "blobs")
    for path in (repo / "blobs").iterdir():
        (folder / path.name).symlink_to(f"../../blobs/{path.name}")
    assert check_files(folder) == 4
    check_no_code(folder)


def test_code_may_be_trusted(tmp_path):
    folder = checkpoint(tmp_path / "model")
    (folder / "modeling_x.py").write_text("")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}')
    assert check_files(folder) == 4
    with pytest.raises(Unsupported, match=TRUST):
        check_no_code(folder)


@pytest.mark.fault("B")
def test_every_prefix_of_a_shard(tmp_path, record_property):
    folder = checkpoint(tmp_path / "model")
    path, whole = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=str(path)):
            check_files(folder)
    record_property("cases", len(whole))


def demo(folder: Path) -> Path:
    shutil.copytree(tiny_models.DEMO, folder)
    return folder


def set_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


CONVERTER: dict[str, tuple[Build, str]] = {
    "fewer layers than there are": (lambda f: set_config(f, num_hidden_layers=10), "convert_hf_to_gguf.py: "),
    "more layers than there are": (lambda f: set_config(f, num_hidden_layers=13), "llama.block_count: 13"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("*token*")], "convert_hf_to_gguf.py: "),
}


@pytest.mark.parametrize("name", CONVERTER)
def test_what_only_the_converter_sees(refuses, tmp_path, name):
    build, message = CONVERTER[name]
    folder = demo(tmp_path / "model")
    build(folder)
    assert f"{folder}: {message}" in refuses(folder, "--spans", "6-9", "-o", tmp_path / "out.gguf")
