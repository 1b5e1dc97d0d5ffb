#!/usr/bin/env python3
"""Print the table of the largest possible savings of SA, computed from the shape of a model.

    python scripts/savings.py

For n followers of L layers, weights of w bits, an f16 KV cache and a context of c tokens:

    weights   -n * n_embd * (n_embd_q + n_embd_k)           of all parameters
    KV cache  -n * n_embd_k / (L * (n_embd_k + n_embd_v)) = -n / 2L where K and V are equally wide
    decode    (W + KV) / (W + KV - saved + reread)          bytes read for one token, which bounds its time

W is the bytes of the weights, KV = 2c * L * (n_embd_k + n_embd_v), and reread = 2c * n_head * n: each follower reads
the f16 attention weights once. The table does not cover prefill or quality.
"""

from shareatt_export.model.costs import decode_bytes, saved_parameters
from shareatt_export.model.synthetic import ModelShape

BITS = 4.5  # about Q4_K_M


SHAPES = {
    "Llama-2-7B": ModelShape(32, 4096, 32, 32, 128, 11008, 32000, tied=False),
    "Llama-3.1-8B": ModelShape(32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    "Llama-3.2-1B": ModelShape(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "Qwen2.5-1.5B": ModelShape(28, 1536, 12, 2, 128, 8960, 151936, tied=True),
    "Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
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


def row(name: str, n: int) -> str:
    shape = SHAPES[name]
    facts = shape.facts()
    alone = facts.attention
    shared = facts.of_layers((0,) * (n + 1) + tuple(range(n + 1, shape.n_layer)))
    saved = saved_parameters(facts, shared)
    kv = 1 - facts.kv_bytes_per_token(shared) / facts.kv_bytes_per_token(alone)
    speedups = []
    for context in (512, 4096, 32768):
        before = decode_bytes(facts, alone, shape.parameters * BITS / 8, context)
        after = decode_bytes(facts, shared, (shape.parameters - saved) * BITS / 8, context)
        speedups.append(f"{before / after:.2f}")
    weights = f"-{100 * saved / shape.parameters:.1f} %"
    return f"| {name} | {n} of {shape.n_layer} | {weights} | -{100 * kv:.1f} % | {' / '.join(speedups)}x |"


def main() -> None:
    print("| model | followers | weights | KV cache | decode at 512 / 4k / 32k tokens |")
    print("| --- | --- | --- | --- | --- |")
    for name, n in ROWS:
        print(row(name, n))


if __name__ == "__main__":
    main()
