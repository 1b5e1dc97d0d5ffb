"""Hugging Face folders of a few hundred bytes, for tests that break one file of them."""

import json
import struct
from pathlib import Path
from typing import Any

LAYERS = 4
Tensors = dict[str, tuple[str, list[int]]]  # dtype and shape by name


def tensors(prefix: str = "") -> Tensors:
    """Return the tensors of the folder: Q of each layer."""
    return {f"{prefix}model.layers.{i}.self_attn.q_proj.weight": ("F32", [4, 2]) for i in range(LAYERS)}


def header_of(tensors: Tensors) -> dict[str, Any]:
    """Return the safetensors header for tensors that follow each other without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        n_bytes = 4 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    return header


def safetensors(header: dict[str, Any] | str, n_bytes: int) -> bytes:
    """Return a safetensors file with this header and n_bytes zeros."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + bytes(n_bytes)


def n_bytes(tensors: Tensors) -> int:
    """Return the size of the data of F32 tensors."""
    return sum(4 * shape[0] * shape[1] for _, shape in tensors.values())


def write(path: Path, tensors: Tensors) -> None:
    """Write a correct safetensors file of zeros."""
    path.write_bytes(safetensors(header_of(tensors), n_bytes(tensors)))


def checkpoint(folder: Path, shards: int = 1) -> Path:
    """Write a folder that check_files accepts, and return it. The converter would refuse it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS})
    )
    if shards == 1:
        write(folder / "model.safetensors", tensors())
        return folder
    weight_map: dict[str, str] = {}
    for no in range(shards):
        name = f"model-{no + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors().items())[no::shards])
        write(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
