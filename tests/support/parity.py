"""How far the runtime is from the torch reference: the measurements behind test_parity.py and docs/parity.md.

python -m tests.support.parity > docs/parity.md
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from shareatt_export.exporting.convert import converted
from shareatt_export.exporting.write import write_plan
from shareatt_export.formats.gguf_header import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import SourceMap, parse_spans, source_map
from shareatt_export.plan.make_plan import make_plan
from tests.support import tiny_models
from tests.support.torch_reference import SharedReference

SPANS = {
    "one span": "2-5",
    "several spans": "1-2,4-6",
    "touching spans": "1-3,4-6",
    "blocks of two": "every:2",
    "source in layer 0": "0-3",
    "last layer a follower": "5-7",
    "followers with gaps": "1:3+5-6",
}
N_TOKENS = 96
N_UBATCH = 32  # of the modes that split a batch
TOLERANCE = {"f32": 1e-6, "f16": 1e-4}
GGML_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
BUDGET, HYBRID = "LLAMA_SHARED_ATTN_P_BYTES", "LLAMA_SHARED_ATTN_HYBRID"
UNLIMITED = str(1 << 40)
# How followers get the weights: flash attention, and the environment. A dense model knows two of them: "plain" is flash
# attention off, and all others are on.
PATHS = {
    "plain": (False, {}),
    "reuse": (True, {BUDGET: UNLIMITED}),
    "hybrid": (True, {BUDGET: UNLIMITED, HYBRID: "1"}),
    "recompute": (True, {BUDGET: "0"}),
}
TOKENS = np.random.default_rng(7).integers(3, 2048, (2, N_TOKENS))

Array = npt.NDArray[np.floating]


def nmse(measured: Array, expected: Array) -> float:
    """Normalised mean squared error, as upstream's tests use it."""
    return float(np.sum((measured - expected) ** 2) / np.sum(expected**2))


@cache
def lib() -> ModuleType:
    built = runtime.require()
    return load(built.python, built.bin)


@dataclass(frozen=True)
class Case:
    """A tiny model: as torch in float64, and as dense GGUF."""

    torch_model: torch.nn.Module
    dense: Path

    def reference(self, source_layers: SourceMap, sequence: int = 0, kind: type = SharedReference) -> Array:
        with kind(source_layers).on(self.torch_model):
            return self.torch_model(torch.tensor(TOKENS[sequence])[None]).logits[0].numpy()

    def shared(self, spans: str, folder: Path) -> Path:
        out = folder / "shared.gguf"
        header = read_header(self.dense)
        facts = read_facts(header)
        write_plan(make_plan(header, facts, parse_spans(spans, facts.n_layer, is_swa=facts.is_swa)), [out], None)
        return out


def make_case(heads: str, outtype: str, folder: Path, head_dim: int = tiny_models.HEAD_DIM) -> Case:
    """With f16 the reference gets the rounded weights too, so that only arithmetic differs."""
    model = tiny_models.build(tiny_models.HEADS[heads], head_dim)
    folder.mkdir(exist_ok=True)
    source = tiny_models.save(model, folder / f"{heads}-{outtype}")
    dense = folder / f"{heads}-{outtype}.gguf"
    with converted(source, folder, outtype, None) as made:
        made.replace(dense)
    if outtype == "f16":
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.half().float()
    return Case(model.double(), dense)


# ---------------------------------------------------------------- ways to get the logits of a sequence


def prefill(context: Context, sequence: int = 0) -> Array:
    return context.decode([Token(int(t), i, sequence) for i, t in enumerate(TOKENS[sequence])])


def token_by_token(context: Context, sequence: int = 0) -> Array:
    return np.concatenate([context.decode([Token(int(t), i, sequence)]) for i, t in enumerate(TOKENS[sequence])])


def two_sequences(context: Context) -> Array:
    """Both in one batch, interleaved; returns the logits of sequence 1."""
    batch = [Token(int(TOKENS[s][i]), i, s) for i in range(N_TOKENS) for s in (0, 1)]
    return context.decode(batch)[1::2]


@dataclass(frozen=True)
class Mode:
    run: Callable[[Context], Array]
    params: dict[str, object]
    sequence: int = 0


MODES = {
    "prefill": Mode(prefill, {}),
    "several ubatches": Mode(prefill, {"n_ubatch": N_UBATCH}),
    "token by token": Mode(token_by_token, {}),
    "two sequences": Mode(two_sequences, {"n_seq_max": 2}, 1),
    "two sequences, one stream": Mode(two_sequences, {"n_seq_max": 2, "kv_unified": True}, 1),
}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Of the contexts created within."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def logits(
    file: Path, mode: str = "prefill", kv: str = "f32", path: str = "plain", share: SourceMap | None = None
) -> Array:
    """`kv` is the type of the cache; "q8_0/f16" has K in one and V in another."""
    type_k, type_v = (GGML_TYPE[name] for name in (kv.split("/") * 2)[:2])
    params = {"n_ctx": 512, "n_batch": 256, "n_ubatch": 256, "type_k": type_k, "type_v": type_v}
    way, (flash_attn, variables) = MODES[mode], PATHS[path]
    with (
        environment(variables),
        Model(lib(), file, share) as model,
        Context(model, flash_attn, **(params | way.params)) as context,
    ):
        return way.run(context)


def error(case: Case, file: Path, spans: str, mode: str, kv: str, path: str = "plain") -> float:
    expected = case.reference(
        source_map(parse_spans(spans, tiny_models.N_LAYER), tiny_models.N_LAYER), MODES[mode].sequence
    )
    return nmse(logits(file, mode, kv, path), expected)


# ---------------------------------------------------------------- mutations: what a wrong runtime would compute


class PreSoftmax(SharedReference):
    """Followers reuse the scores before the softmax."""

    def reused(self, index: int) -> torch.Tensor:
        weights = super().reused(index)
        return torch.where(weights > 0, weights.clamp_min(1e-30).log(), 0.0)


class NoMask(SharedReference):
    """Source layers do not mask what lies ahead."""

    def attend(self, layer, query, key, value, mask, **kwargs):
        return super().attend(layer, query, key, value, None, **kwargs)


class StaleUbatch(SharedReference):
    """Followers reuse the weights of the ubatch before."""

    def reused(self, index: int) -> torch.Tensor:
        weights = super().reused(index).clone()
        weights[:, :, N_UBATCH:] = weights[:, :, :-N_UBATCH].clone()
        return weights


class SourceOffByOne(SharedReference):
    """Followers reuse the weights of the layer before their source."""

    def __init__(self, source_layers: SourceMap) -> None:
        super().__init__(tuple(s if s == i else s - 1 for i, s in enumerate(source_layers)))


class ZeroedQuery(SharedReference):
    """The source's Q is zero, so its attention is uniform."""

    def attend(self, layer, query, key, value, mask, **kwargs):
        is_source = self.source_layers.count(layer.layer_idx) > 1
        return super().attend(layer, query * 0 if is_source else query, key, value, mask, **kwargs)


class SwappedValues(SharedReference):
    """Layers 3 and 4, both followers, get each other's V."""

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        first, second = (model.model.layers[i].self_attn.v_proj.weight for i in (3, 4))
        first.data, second.data = second.data, first.data
        with super().on(model):
            yield
        first.data, second.data = second.data, first.data


MUTATIONS = {
    "source off by one": SourceOffByOne,
    "scores before the softmax": PreSoftmax,
    "mask skipped": NoMask,
    "V of two followers swapped": SwappedValues,
    "weights of the previous ubatch": StaleUbatch,
    "Q of the source zeroed": ZeroedQuery,
}
MUTATED_SPANS = "2-5"


def mutation_error(case: Case, folder: Path, kind: type[SharedReference]) -> float:
    """The distance between the true runtime and the mutated reference."""
    source_layers = source_map(parse_spans(MUTATED_SPANS, tiny_models.N_LAYER), tiny_models.N_LAYER)
    expected = case.reference(source_layers, kind=kind)
    return nmse(logits(case.shared(MUTATED_SPANS, folder)), expected)


# ---------------------------------------------------------------- docs/parity.md

PREFACE = """# Parity: the runtime against the torch reference

Normalised mean squared error of the logits, {n} tokens, tiny attention-dominant Llamas of {layers} layers; made by
`python -m tests.support.parity > docs/parity.md`, held in CI by `tests/llamacpp/test_parity.py`.

The reference is float64 torch (`tests/support/torch_reference.py`). F32 and F16 name the type of the weights and of the
KV cache. Followers get the weights on three paths:

- plain: flash attention switched off; they reuse the source's probabilities;
- reuse: the same with flash attention on, as far as there is memory for the probabilities; no layer needs it then;
- hybrid: flash attention outside the spans, reuse within;
- recompute: flash attention everywhere, followers with the source's Q and K.

Where flash attention is at work, the error is beside what the *dense* model shows between flash attention on and off:
ggml's CPU kernel rounds K and V to f16. At most twice that is tolerated.
"""


def flash_error_of_dense(case: Case, mode: str) -> float:
    """Between flash attention on and off, in a model that shares nothing."""
    return nmse(logits(case.dense, mode, path="recompute"), logits(case.dense, mode))


# The type of the cache (K/V) and the path; llama.cpp quantises V with flash attention only.
KV_TYPES = (
    "f16",
    "bf16",
    "q8_0",
    "q4_0",
    "q8_0/q4_0",
    "q8_0/f16",
    "q4_0/f16",
    "f16/f32",
    "bf16/f32",
    "q8_0/f32",
    "q4_0/f32",
)
CACHES = [(kv, path) for path in ("reuse", "hybrid", "recompute") for kv in KV_TYPES]
CACHES += [(kv, "plain") for kv in KV_TYPES if kv.endswith("f16") or kv.endswith("f32")]
WIDE = 64  # heads of this size are rotated (Hadamard) before a cache is quantised


def cache_errors(case: Case, folder: Path, kv: str, path: str) -> tuple[float, dict[str, float]]:
    """What a cache type costs the dense model, and what it costs with each layout of spans."""
    everyone_computes = case.reference(tuple(range(tiny_models.N_LAYER)))
    dense = nmse(logits(case.dense, "several ubatches", kv, path), everyone_computes)
    shared = {
        spans: error(case, case.shared(spans, folder), spans, "several ubatches", kv, path) for spans in SPANS.values()
    }
    return dense, shared


def report(folder: Path) -> Iterator[str]:
    yield PREFACE.format(n=N_TOKENS, layers=tiny_models.N_LAYER)
    yield f"Tolerances: F32 {TOLERANCE['f32']:.0e}, F16 {TOLERANCE['f16']:.0e}.\n"
    yield "| heads | spans | way | " + " | ".join(f"{path}, F32" for path in PATHS) + " | plain, F16 | dense, F32 |"
    yield "| --- | --- | --- |" + " --- |" * (len(PATHS) + 2)
    cases = {(heads, kv): make_case(heads, kv, folder) for heads in tiny_models.HEADS for kv in TOLERANCE}
    for heads in tiny_models.HEADS:
        f32, f16 = cases[heads, "f32"], cases[heads, "f16"]
        for name, spans in SPANS.items():
            for mode in MODES:
                file = f32.shared(spans, folder)
                cells = [error(f32, file, spans, mode, "f32", path) for path in PATHS]
                cells.append(error(f16, f16.shared(spans, folder), spans, mode, "f16"))
                cells.append(flash_error_of_dense(f32, mode))
                yield f"| {heads} | {name} `{spans}` | {mode} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |"
    yield "\n## Cache types\n"
    yield f"GQA with heads of {WIDE}, F32 weights, several ubatches: the error of the dense model, and the worst over"
    yield "all spans above; at most twice the dense error is tolerated.\n"
    yield "| K/V | path | dense | SA |"
    yield "| --- | --- | --- | --- |"
    wide = make_case("GQA", "f32", folder / "wide", WIDE)
    for kv, path in CACHES:
        dense, shared = cache_errors(wide, folder, kv, path)
        yield f"| {kv} | {path} | {dense:.1e} | {max(shared.values()):.1e} |"
    yield "\n## Mutations\n"
    yield f"The true runtime against a reference with one thing wrong, spans `{MUTATED_SPANS}`, F32; each must exceed"
    yield "100 times the tolerance.\n"
    yield "| mutation | " + " | ".join(tiny_models.HEADS) + " |"
    yield "| --- |" + " --- |" * len(tiny_models.HEADS)
    for name, kind in MUTATIONS.items():
        errors = [mutation_error(cases[heads, "f32"], folder, kind) for heads in tiny_models.HEADS]
        yield f"| {name} | " + " | ".join(f"{error:.2f}" for error in errors) + " |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for line in report(Path(work)):
            print(line, flush=True)
