"""Small random GGUF files, written with the gguf package, against which our own reader and writer are tested."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from shareatt_export.formats.gguf_encode import header_bytes
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Token

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV = 12, 64, 4, 2
ROWS = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 64, "ffn_down": 64, "ffn_up": 64}
N_VOCAB = 32
Q8_0 = gguf.GGMLQuantizationType.Q8_0

# Context parameters for such a model. It is so small that a second thread would only wait.
F32_CACHE: dict[str, Any] = {"n_ctx": 256, "type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1}


def tokens(n: int, first: int = 0, sequence: int = 0) -> list[Token]:
    """Return n tokens of a fixed text, from position `first` on."""
    return [Token((7 * i + 3) % N_VOCAB, i, sequence) for i in range(first, first + n)]


def write_dense(
    path: Path,
    fused: bool = False,
    q8_0: bool = False,
    bias: bool = False,
    down_bias: Mapping[int, npt.NDArray[np.float32]] | None = None,
    arch: str = "llama",
    n_layer: int = N_LAYER,
    attention_gain: float = 1,
    **extra: object,
) -> Path:
    """Write a dense model with the tensors of a Llama, and return `path`.

    fused: Q, K and V are one tensor. q8_0: the type of the matrices, F32 otherwise. bias: Q, K and V have biases.
    down_bias: biases of ffn_down by layer. arch: the value of general.architecture. attention_gain: a factor for Q and
    K; with 4, attention is far from uniform. extra: further string keys, with _ for the first dot.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Small")
    writer.add_organization("Test")
    writer.add_size_label("0.4M")
    writer.add_tags(["one", "two"])
    writer.add_block_count(n_layer)
    writer.add_context_length(128)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_EMBD)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.words", ["a", "", "längs"])
    rng = np.random.default_rng(0)

    def add(name: str, rows: int) -> None:
        data = rng.standard_normal((rows, N_EMBD), dtype=np.float32) / 8
        if "attn_q." in name or "attn_k." in name:
            data *= np.float32(attention_gain)
        if q8_0:
            writer.add_tensor(name, gguf.quants.quantize(data, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(name, data)

    add("token_embd.weight", N_VOCAB)
    for layer in range(n_layer):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(N_EMBD, dtype=np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(N_EMBD, dtype=np.float32))
        rows = dict(ROWS)
        if fused:
            rows["attn_qkv"] = rows.pop("attn_q") + rows.pop("attn_k") + rows.pop("attn_v")
        for role, n in rows.items():
            add(f"blk.{layer}.{role}.weight", n)
            if bias and role in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{role}.bias", rng.standard_normal(n, dtype=np.float32))
            if bias and role == "attn_qkv":
                writer.add_tensor(f"blk.{layer}.{role}.bias", rng.standard_normal(n, dtype=np.float32))
    for layer, values in (down_bias or {}).items():
        writer.add_tensor(f"blk.{layer}.ffn_down.bias", values)
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, dtype=np.float32))
    for key, value in extra.items():
        writer.add_string(key.replace("_", ".", 1), str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_metadata(source: Path, out: Path, /, **changes: RawValue | None) -> Path:
    """Write a copy of `source` with other metadata, and return `out`. Keys have __ for a dot; None removes a key."""
    header = read_header(source)
    metadata = dict(header.metadata)
    for name, value in changes.items():
        key = name.replace("__", ".")
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    data = source.read_bytes()[header.data_offset :]
    out.write_bytes(header_bytes(header.version, metadata, header.tensors.values(), header.alignment) + data)
    return out


def write_imatrix(dense: Path, path: Path) -> Path:
    """Write an importance matrix in the format of llama-imatrix for every matrix of the model, and return `path`."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration text"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    rng = np.random.default_rng(1)
    for name, info in read_header(dense).tensors.items():
        if len(info.shape) == 2:
            writer.add_tensor(f"{name}.in_sum2", rng.uniform(0.5, 2, (1, info.shape[0])).astype(np.float32))
            writer.add_tensor(f"{name}.counts", np.array([[3]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
