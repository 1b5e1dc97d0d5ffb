#!/usr/bin/env python3
"""Time another program on a GGUF, for scripts/bench_peers.py: runs in the environment where that program is installed.

    python peer_worker.py ik_llama.cpp model.gguf 8832 2

It reads commands from stdin and answers as shareatt_export/benchmark/worker.py does, and imports nothing of
shareatt_export. It computes every token that it fills the context with.
"""

import ctypes
import importlib
import json
import sys
import time
from typing import Any


class IkLlama:
    """ik_llama.cpp through the functions of its library."""

    def __init__(self, model: str, n_ctx: int, n_threads: int) -> None:
        self.calls = importlib.import_module("ik_llama_cpp._internals")
        self.model = self.calls.IkModel(model)
        self.context = self.calls.IkContext(self.model, n_ctx=n_ctx, n_threads=n_threads, flash_attn=True)
        self.depth = 0

    def fill(self, depth: int) -> list[float]:
        while self.depth < depth:
            n = min(512, depth - self.depth)
            self._decode(self.depth, n)
            self.depth += n
        return []

    def prefill(self, n: int) -> list[float]:
        seconds = self._decode(self.depth, n)
        self._forget()
        return [seconds]

    def decode(self, n: int) -> list[float]:
        seconds = [self._decode(self.depth + i, 1) for i in range(n + 1)]
        self._forget()
        return seconds[1:]

    def _decode(self, position: int, n: int) -> float:
        batch = self.calls.make_batch_range(tokens(position, n), pos_start=position)
        start = time.perf_counter()
        status = self.context.decode(batch)
        seconds = time.perf_counter() - start
        self.calls.C.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return seconds

    def _forget(self) -> None:
        remove = self.calls.C._lib.llama_kv_cache_seq_rm  # which the package does not declare
        remove(ctypes.c_void_p(self.context.ctx), 0, self.depth, -1)


class XLlama:
    """The server of the newest llama.cpp, in this process: xllamacpp. It measures the times itself."""

    def __init__(self, model: str, n_ctx: int, n_threads: int) -> None:
        module = importlib.import_module("xllamacpp")
        params = module.CommonParams()
        params.model.path = model
        params.n_ctx, params.n_parallel = n_ctx + 1, 1  # a prompt must leave room for a token
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
        params.warmup = False
        self.server = module.Server(params)
        self.depth = self.round = 0

    def fill(self, depth: int) -> list[float]:
        self.depth = depth
        if depth:
            self._complete(tokens(0, depth), 1)
        return []

    def prefill(self, n: int) -> list[float]:
        found = self._complete(self._after_depth(n), 1)
        if not n <= found["prompt_n"] <= n + 1:
            raise RuntimeError(f"{found['prompt_n']} tokens were computed, {n} expected")
        return [found["prompt_ms"] / 1000 * n / found["prompt_n"]]

    def decode(self, n: int) -> list[float]:
        found = self._complete(self._after_depth(1), n + 1)
        return [found["predicted_ms"] / 1000 / found["predicted_n"]] * n

    def _after_depth(self, n: int) -> list[int]:
        self.round += 1  # other tokens each time, which no cache has
        return tokens(0, self.depth) + tokens(100_000 + 1000 * self.round, n)

    def _complete(self, prompt: list[int], n_predict: int) -> dict[str, Any]:
        options = {"cache_prompt": True, "ignore_eos": True, "temperature": 0}
        found = self.server.handle_completions({"prompt": prompt, "n_predict": n_predict} | options)
        timings: dict[str, Any] = (json.loads(found) if isinstance(found, (str, bytes)) else found)["timings"]
        return timings


PEERS = {"ik_llama.cpp": IkLlama, "llama.cpp, newest": XLlama}


def tokens(position: int, n: int) -> list[int]:
    """Return tokens that look random, and are the same for the same positions; below 20,311."""
    return [300 + (position + i) * 7919 % 20_011 for i in range(n)]


def main() -> None:
    name, model, n_ctx, n_threads = sys.argv[1:]
    worker = PEERS[name](model, int(n_ctx), int(n_threads))
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        command, (number,) = words.pop("command"), words.values()
        print(json.dumps({"seconds": [{"all": each} for each in getattr(worker, command)(number)]}), flush=True)


if __name__ == "__main__":
    main()
