"""A Hugging Face folder again, with other values in some tensors and every other byte as it was.

    slots = find_tensors(folder, names)          # where in its safetensors they are
    copy_with(folder, target, slots, values)     # values in float32, written in each tensor's own type

Copied are weights, tokenizer, configuration and papers; programs and pickles are left behind.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadInput, Unsupported
from .checks import checkpoint_files

KEPT = {".json", ".jsonl", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".safetensors", ""}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 100_000_000  # the limit of safetensors itself


@dataclass(frozen=True)
class Slot:
    """A tensor of a safetensors file."""

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def find_tensors(folder: Path, names: Iterable[str]) -> dict[str, Slot]:
    """Raises BadInput or Unsupported where one is not there, or is of a type that training has no numbers for."""
    slots: dict[str, Slot] = {}
    wanted = set(names)
    for path in sorted(folder.glob("model*.safetensors")):
        slots |= _slots(path, wanted)
    for name in wanted - slots.keys():
        raise Unsupported(f"{folder}: no tensor '{name}': transformers has another name for it than the checkpoint")
    return slots


def _slots(path: Path, wanted: set[str]) -> dict[str, Slot]:
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if n_header > MAX_HEADER:
                raise ValueError(f"a header of {n_header} bytes")
            header = json.loads(file.read(n_header))
        slots = {}
        for name in wanted & header.keys():
            kind, shape, (begin, end) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
            if kind not in DTYPES:
                raise Unsupported(f"{path}: tensor '{name}': of type {kind}; heal trains {', '.join(DTYPES)}")
            slot = Slot(path.name, 8 + n_header + begin, DTYPES[kind], tuple(shape))
            if end - begin != math.prod(shape) * slot.dtype.itemsize or 8 + n_header + end > path.stat().st_size:
                raise ValueError(f"tensor '{name}': offsets {begin} to {end} do not fit")
            slots[name] = slot
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: not a safetensors file: {error}") from None
    return slots


def copy_with(folder: Path, target: Path, slots: Mapping[str, Slot], values: Mapping[str, Tensor]) -> None:
    for path in checkpoint_files(folder):
        if path.suffix in KEPT:
            shutil.copyfile(path, target / path.name)
    for name, value in values.items():
        slot = slots[name]
        data = value.detach().cpu().to(slot.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        with (target / slot.file).open("r+b") as file:
            file.seek(slot.offset)
            file.write(data)
