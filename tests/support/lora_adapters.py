"""LoRA adapters as GGUF files, and dense files into which such an adapter is merged."""

import ctypes
import shutil
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import small_gguf

RANK, ALPHA, SCALE = 2, 3.0, 0.5
Array = npt.NDArray[np.float32]


def lora_pair(name: str) -> tuple[Array, Array]:
    """Return A [RANK, n_embd] and B [rows, RANK] for a tensor of small_gguf, such as "blk.7.attn_v".

    Their product is as large as the weight itself, so that it changes the logits clearly.
    """
    rng = np.random.default_rng(list(name.encode()))
    rows = small_gguf.ROWS[name.rsplit(".", 1)[1]]
    a = rng.standard_normal((RANK, small_gguf.N_EMBD), dtype=np.float32) / np.float32(8)
    return a, rng.standard_normal((rows, RANK), dtype=np.float32)


def write_lora(path: Path, names: list[str]) -> Path:
    """Write an adapter for the tensors `names`, and return `path`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name in names:
        a, b = lora_pair(name)
        writer.add_tensor(f"{name}.weight.lora_a", a)
        writer.add_tensor(f"{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merge_lora(dense: Path, out: Path, names: list[str]) -> Path:
    """Write `dense`, an F32 file, with W + SCALE * ALPHA / RANK * B A in place of W for the tensors `names`."""
    shutil.copy(dense, out)
    tensors = read_header(out).tensors
    for name in names:
        a, b = lora_pair(name)
        shape = (len(b), small_gguf.N_EMBD)
        weight = np.memmap(out, np.float32, "r+", tensors[f"{name}.weight"].offset, shape)
        weight += SCALE * ALPHA / RANK * b @ a
        weight.flush()
    return out


def apply_lora(model: Model, context: Context, path: Path) -> None:
    """Load the adapter `path` and apply it to `context` with the factor SCALE."""
    handle = model.lib.llama_adapter_lora_init(model.handle, str(path).encode())
    assert handle
    adapters = (model.lib.llama_adapter_lora_p_ctypes * 1)(handle)
    assert model.lib.llama_set_adapters_lora(context.handle, adapters, 1, (ctypes.c_float * 1)(SCALE)) == 0
