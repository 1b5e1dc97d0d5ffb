"""Copy a Hugging Face folder with new values in some tensors, and every other byte unchanged.

    slots = find_tensors(folder, names)          # the place of each tensor in the safetensors files
    copy_with(folder, target, slots, values)     # float32 values, written in the type of each tensor

Weights, tokenizer, configuration and documents are copied; programs and pickles are not.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Unsupported
from .checks import checkpoint_files
from .safetensors import StoredTensor, read_tensors

KEPT = {".json", ".jsonl", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".safetensors", ""}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a safetensors file: `offset` counts bytes from the start of the file."""

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def find_tensors(folder: Path, names: Iterable[str]) -> dict[str, Slot]:
    """Return the place of each named tensor in the safetensors files of the folder.

    Raises BadInput for a damaged file, Unsupported if a tensor is missing or has a type that heal cannot train.
    """
    slots: dict[str, Slot] = {}
    wanted = set(names)
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = read_tensors(path)
        slots |= {name: _slot(path, tensors[name]) for name in wanted & tensors.keys()}
    for name in wanted - slots.keys():
        reason = f"no tensor '{name}': transformers has another name for it than the checkpoint"
        raise Unsupported(reason, path=folder)
    return slots


def _slot(path: Path, tensor: StoredTensor) -> Slot:
    if tensor.dtype not in DTYPES:
        reason = f"has type {tensor.dtype}; heal trains {', '.join(DTYPES)}"
        raise Unsupported(reason, path=path, field=f"tensor '{tensor.name}'")
    return Slot(path.name, tensor.offset, DTYPES[tensor.dtype], tensor.shape)


def copy_with(folder: Path, target: Path, slots: Mapping[str, Slot], values: Mapping[str, Tensor]) -> None:
    """Copy the folder to the existing folder `target`, with new values of the named tensors."""
    for path in checkpoint_files(folder):
        if path.suffix in KEPT:
            shutil.copyfile(path, target / path.name)
    for name, value in values.items():
        slot = slots[name]
        data = value.detach().cpu().to(slot.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        with (target / slot.file).open("r+b") as file:
            file.seek(slot.offset)
            file.write(data)
