#!/usr/bin/env python3
"""What SA can save at most, by arithmetic from a model's shape; prints the table of the README.

    python scripts/savings.py

For n followers of L layers, weights of w bits, an f16 KV cache and a context of c tokens:

    weights   -n * n_embd * (n_embd_q + n_embd_k)           of all parameters
    KV cache  -n * n_embd_k / (L * (n_embd_k + n_embd_v)) = -n / 2L where K and V are equally wide
    decode    (W + KV) / (W + KV - saved + reread)          bytes read for one token, which bounds its time

W is the bytes of the weights, KV = 2c * L * (n_embd_k + n_embd_v), and reread = 4c * n_head * n: each follower reads
the f32 attention weights once. It says nothing of prefill, and nothing of quality.
"""

from dataclasses import dataclass

BITS = 4.5  # about Q4_K_M


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    tied: bool

    @property
    def n_embd_q(self) -> int:
        return self.n_head * self.head_dim

    @property
    def n_embd_k(self) -> int:
        return self.n_head_kv * self.head_dim

    @property
    def parameters(self) -> int:
        attention = self.n_embd * (2 * self.n_embd_q + 2 * self.n_embd_k)
        embeddings = self.n_vocab * self.n_embd * (1 if self.tied else 2)
        return embeddings + self.n_layer * (attention + 3 * self.n_embd * self.n_ff)

    def saved_parameters(self, n: int) -> int:
        return n * self.n_embd * (self.n_embd_q + self.n_embd_k)

    def decode_speedup(self, n: int, context: int) -> float:
        weights = self.parameters * BITS / 8
        kv = 2 * context * self.n_layer * 2 * self.n_embd_k
        saved = self.saved_parameters(n) * BITS / 8 + 2 * context * n * self.n_embd_k
        reread = 4 * context * self.n_head * n
        return (weights + kv) / (weights + kv - saved + reread)


SHAPES = {
    "Llama-2-7B": Shape(32, 4096, 32, 32, 128, 11008, 32000, False),
    "Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    "Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, True),
    "Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, True),
    "Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, 151936, True),
}
ROWS = [
    ("Llama-2-7B", 8),
    ("Llama-2-7B", 16),
    ("Llama-3.1-8B", 4),
    ("Llama-3.1-8B", 8),
    ("Llama-3.1-8B", 16),
    ("Llama-3.2-1B", 4),
    ("Qwen2.5-1.5B", 7),
    ("Qwen3-4B", 9),
]


def main() -> None:
    print("| model | followers | weights | KV cache | decode at 512 / 4k / 32k tokens |")
    print("| --- | --- | --- | --- | --- |")
    for name, n in ROWS:
        shape = SHAPES[name]
        weights = 100 * shape.saved_parameters(n) / shape.parameters
        kv = 100 * n / (2 * shape.n_layer)
        speeds = " / ".join(f"{shape.decode_speedup(n, context):.2f}" for context in (512, 4096, 32768))
        print(f"| {name} | {n} of {shape.n_layer} | -{weights:.1f} % | -{kv:.1f} % | {speeds}x |")


if __name__ == "__main__":
    main()
