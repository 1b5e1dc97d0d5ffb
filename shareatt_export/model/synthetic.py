"""Llama models of a given shape: their number of parameters, and GGUF files of that shape with random weights.

    write_random(path, ModelShape(16, n_embd=2048, n_head=32, n_head_kv=8, head_dim=64, n_ff=8192, n_vocab=32000))

Speed and memory do not depend on the values of the weights, so such a file can replace a trained model in measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from .attention_map import dense_map
from .facts import Facts

CONTEXT_LENGTH = 32768
Q8_0 = gguf.GGMLQuantizationType.Q8_0
BLOCK, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[Q8_0]  # an f16 scale and 32 numbers of 8 bits


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Llama model in which all layers are equal."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    tied: bool = True  # the output matrix is the embedding

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name, rows and columns of each weight matrix, in the order of a file."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        yield "token_embd", self.n_vocab, self.n_embd
        for layer in range(self.n_layer):
            yield f"blk.{layer}.attn_q", q, self.n_embd
            yield f"blk.{layer}.attn_k", kv, self.n_embd
            yield f"blk.{layer}.attn_v", kv, self.n_embd
            yield f"blk.{layer}.attn_output", self.n_embd, q
            yield f"blk.{layer}.ffn_gate", self.n_ff, self.n_embd
            yield f"blk.{layer}.ffn_up", self.n_ff, self.n_embd
            yield f"blk.{layer}.ffn_down", self.n_embd, self.n_ff
        if not self.tied:
            yield "output", self.n_vocab, self.n_embd

    @property
    def parameters(self) -> int:
        """Number of parameters in all weight matrices."""
        return sum(rows * columns for _, rows, columns in self.matrices())

    def facts(self) -> Facts:
        """Return what read_facts() returns for a file of this shape."""
        return Facts(
            arch="llama",
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=(self.n_head,) * self.n_layer,
            n_head_kv=(self.n_head_kv,) * self.n_layer,
            head_dim_k=self.head_dim,
            head_dim_v=self.head_dim,
            n_ctx_train=CONTEXT_LENGTH,
            is_swa=(False,) * self.n_layer,
            attention=dense_map((self.n_head,) * self.n_layer, (self.n_head_kv,) * self.n_layer),
        )


def write_random(path: Path, shape: ModelShape) -> None:
    """Write a Llama model with random q8_0 weights and no tokenizer, one matrix at a time and always the same bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("no_vocab")
    norms = [f"blk.{layer}.{role}" for layer in range(shape.n_layer) for role in ("attn_norm", "ffn_norm")]
    norm = np.ones(shape.n_embd, dtype=np.float32)
    for name in (*norms, "output_norm"):
        writer.add_tensor_info(f"{name}.weight", norm.shape, norm.dtype, norm.nbytes)
    for name, rows, columns in shape.matrices():
        stored = rows, columns // BLOCK * BLOCK_BYTES
        writer.add_tensor_info(f"{name}.weight", stored, np.dtype(np.uint8), stored[0] * stored[1], Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in (*norms, "output_norm"):
        writer.write_tensor_data(norm)
    rng = np.random.default_rng(0)
    for _, rows, columns in shape.matrices():
        writer.write_tensor_data(_random_blocks(rng, rows, columns))
    writer.close()


def _random_blocks(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return q8_0 blocks with a variance of about 1 / columns, so that activations neither vanish nor overflow."""
    blocks = np.empty((rows * columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    blocks[:, 2:] = np.frombuffer(rng.bytes(rows * columns), dtype=np.uint8).reshape(-1, BLOCK)
    scale = np.array([1 / (74 * columns**0.5)], dtype=np.float16)  # 74 is the standard deviation of a uniform int8
    blocks[:, :2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)
