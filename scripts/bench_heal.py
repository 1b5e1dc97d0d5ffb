#!/usr/bin/env python3
"""Compare a step of `shareatt-export heal` with a plain training step of transformers on the same GGUF.

    python scripts/bench_heal.py dense.gguf 25-28 --text train.txt

A plain step is forward pass, cross entropy, backward pass and AdamW for all parameters of the model. Both take batches
of the same shape, in turns. Prints a table in Markdown of medians, in tokens per second; `--threads 1` is best beside
other programs.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from shareatt_export.healing.heal import heal
from shareatt_export.healing.job import DTYPES, planned
from shareatt_export.healing.request import HealRequest


def plain_seconds(request: HealRequest) -> float:
    """Return the seconds of a plain step, the mean of as many steps as the request has, after one that is not timed."""
    model, folder = Path(request.model), Path(request.model).parent
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=model.name, dtype=DTYPES[request.dtype])
    optimizer = torch.optim.AdamW(network.parameters())
    generator, steps = torch.Generator().manual_seed(request.seed), request.steps or 1
    began = 0.0
    for i in range(steps + 1):
        if i == 1:
            began = time.monotonic()
        tokens = torch.randint(network.config.vocab_size, (request.batch, request.n_ctx), generator=generator)
        optimizer.zero_grad()
        network(tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
    return (time.monotonic() - began) / steps


def healing_seconds(request: HealRequest) -> float:
    """Return the seconds of a step of `heal`, the mean of as many steps as the request has."""
    result = heal(planned(request)).result
    return result.seconds / result.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense GGUF")
    parser.add_argument("spans")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--train-mlp", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        request = HealRequest(
            args.model,
            args.spans,
            Path(folder) / "healed.gguf",
            args.text,
            train_mlp=args.train_mlp,
            n_ctx=args.ctx,
            batch=args.batch,
            steps=args.steps,
            dtype=args.dtype,
            force=True,
            n_threads=args.threads,
        )
        rounds = [(plain_seconds(request), healing_seconds(request)) for _ in range(args.rounds)]
    n_tokens = args.batch * args.ctx
    plain, healing = (n_tokens / median(each) for each in zip(*rounds, strict=True))
    print("| transformers, tokens/s | heal, tokens/s | ratio |\n| --- | --- | --- |")
    print(f"| {plain:.0f} | {healing:.0f} | {median(p / h for p, h in rounds):.2f} |")


if __name__ == "__main__":
    main()
