#!/usr/bin/env python3
"""Check the runtime on a GPU: errors of the logits against the CPU, and speed, as Markdown tables.

    shareatt-export runtime build --backend cuda     # or vulkan, metal, hip, sycl
    python -m scripts.check_gpu                      # the errors; status 1 if one is too large
    python -m scripts.check_gpu --bench build/shapes --depths 0 4096 32768

It runs on every device that the runtime sees; --device NAME chooses one. The models of --bench are those of
scripts/bench_shapes.py, which keeps them in the folder.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scripts.bench_shapes import SHAPES, exported, written
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.devices import NO_DEVICE, devices, offload_params
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.support import parity
from tests.support.parity import GGML_TYPE, TOKENS, Array, Case, make_case, nmse

MAP_SPANS = "1-3,4-6"  # of 8 layers, 4 are followers
PROMPT = 64  # tokens in one ubatch; the other 32 are decoded one by one
# heads, head size, cache, flash attention, layers on the device (-1: all)
SETTINGS = [
    ("MHA", 64, "f32", False, -1),
    ("MHA", 64, "f16", True, -1),
    ("MHA", 64, "f16", False, -1),
    ("MHA", 64, "q8_0", True, -1),
    ("GQA", 64, "f16", True, -1),
    ("GQA", 64, "q8_0", True, -1),
    ("MQA", 64, "f16", True, -1),
    ("MQA", 64, "q8_0", True, -1),
    ("GQA", 128, "f16", True, -1),
    ("GQA", 128, "f16", False, -1),
    ("GQA", 64, "f16", True, 3),
    ("GQA", 64, "f16", True, 7),
]
# How much error the dense model has depends on the backend: some add up f16 products in f16. The SA model may have a
# few times as much: with flash attention the CPU reuses attention weights where the device recomputes them, so they
# round twice. A wrong source layer gives more than 0.1.
DENSE_TOLERANCE, SA_FACTOR, WRONG_MAP = 1e-2, 10, 0.1


def logits(file: Path, kv: str, flash_attn: bool, gpu_layers: int, device: str | None) -> tuple[Array, float]:
    """Return the logits of the tokens, and the MiB of the KV cache that are on a device."""
    params = {"n_ctx": 512, "n_batch": 256, "n_ubatch": 256, "type_k": GGML_TYPE[kv], "type_v": GGML_TYPE[kv]}
    tokens = [Token(int(token), position) for position, token in enumerate(TOKENS[0])]
    offload = offload_params(parity.lib(), gpu_layers, device)
    with Model(parity.lib(), file, **offload) as model, Context(model, flash_attn, **params) as context:
        steps = [context.decode(tokens[:PROMPT]), *(context.decode([token]) for token in tokens[PROMPT:])]
        return np.concatenate(steps), kv_mib(context.log)


def kv_mib(log: str) -> float:
    lines = [line.split() for line in log.splitlines() if "KV buffer size" in line and "CPU KV" not in line]
    return sum(float(line[line.index("MiB") - 1]) for line in lines)


def error_rows(case: Case, setting: tuple[str, int, str, bool, int], folder: Path, device: str | None) -> Iterator[str]:
    """Yield the row of a setting, and 'WRONG: ...' where it is not as it must be."""
    heads, head_dim, kv, flash_attn, gpu_layers = setting
    files = {"dense": case.dense, "SA": case.shared(MAP_SPANS, folder)}
    on_device, on_cpu, mib = {}, {}, {}
    for name, file in files.items():
        on_device[name], mib[name] = logits(file, kv, flash_attn, gpu_layers, device)
        on_cpu[name], _ = logits(file, kv, flash_attn, 0, NO_DEVICE)
    errors = {name: nmse(on_device[name], on_cpu[name]) for name in files}
    difference = nmse(on_device["SA"], on_device["dense"])
    n_layers = "all" if gpu_layers < 0 else str(gpu_layers)
    yield (
        f"| {heads}, {head_dim} | {kv} | {'on' if flash_attn else 'off'} | {n_layers} | {errors['dense']:.1e} "
        f"| {errors['SA']:.1e} | {difference:.2f} | {mib['dense']:.2f} | {mib['SA']:.2f} |"
    )
    if not errors["dense"] <= DENSE_TOLERANCE:
        yield f"WRONG: the error of the dense model must not exceed {DENSE_TOLERANCE}"
    if not errors["SA"] <= SA_FACTOR * errors["dense"]:
        yield f"WRONG: the SA model must not have more than {SA_FACTOR} times the error of the dense model"
    if not difference > WRONG_MAP:
        yield "WRONG: the SA model gives the dense model's logits"
    if gpu_layers < 0 and abs(mib["SA"] - 0.75 * mib["dense"]) > 0.01:  # 4 of 8 layers have no K
        yield "WRONG: the KV cache of the SA model must be 3/4 of the dense model's"


def errors(device: str | None) -> Iterator[str]:
    """Yield the lines of the table of errors."""
    yield "| heads | cache | flash attention | layers | dense | SA | SA against dense | KV MiB, dense | KV MiB, SA |"
    yield "| --- |" + " --- |" * 8
    with tempfile.TemporaryDirectory() as work:
        cases: dict[tuple[str, int], Case] = {}
        for setting in SETTINGS:
            heads, head_dim = setting[:2]
            if (heads, head_dim) not in cases:
                cases[heads, head_dim] = make_case(heads, "f16", Path(work) / f"{heads}-{head_dim}", head_dim)
            yield from error_rows(cases[heads, head_dim], setting, Path(work), device)


def bench(folder: Path, depths: list[int], repetitions: int, device: str | None) -> None:
    """Run llama-bench on the shapes, dense and SA, with flash attention off and on."""
    for name in SHAPES:
        dense = written(name, "q8_0", folder)
        sa = exported(name, dense, "shared")
        print(f"\n{name}:\n", flush=True)
        command = [runtime.tool("llama-bench"), "-m", dense, "-m", sa, "-ngl", 99, "-fa", "0,1", "-p", 512, "-n", 32]
        command += ["-d", ",".join(map(str, depths)), "-r", repetitions, "-o", "md"]
        command += [] if device is None else ["-dev", device]
        subprocess.run(list(map(str, command)), check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME")
    parser.add_argument("--bench", type=Path, metavar="FOLDER", help="measure speed instead of errors")
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096, 32768])
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    found = devices()
    for each in found:
        print(f"{each.name}: {each.description}")
    if not found:
        print("the runtime sees no device; build it with 'shareatt-export runtime build --backend ...'")
        return 1
    if args.bench:
        bench(args.bench, args.depths, args.repetitions, args.device)
        return 0
    wrong = False
    for line in errors(args.device):
        print(line, flush=True)
        wrong |= line.startswith("WRONG")
    return int(wrong)


if __name__ == "__main__":
    built = runtime.require()
    load(built.python, built.bin)
    sys.exit(main())
