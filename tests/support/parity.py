"""Measure the error of the runtime against the torch reference, for test_parity.py and docs/parity.md.

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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from shareatt_export.exporting.write import write_plan
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import SourceMap, parse_spans, source_map
from shareatt_export.plan.make_plan import make_plan
from tests.support import conversions, tiny_models
from tests.support.exports import spans_map
from tests.support.torch_reference import SharedReference
from tests.support.wrong_references import MUTATIONS, N_UBATCH

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
TOLERANCE = {"f32": 1e-6, "f16": 1e-4}
GGML_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
BUDGET, HYBRID = "LLAMA_SHARED_ATTN_P_BYTES", "LLAMA_SHARED_ATTN_HYBRID"
UNLIMITED = str(1 << 40)
# How followers get the attention weights: flash attention on or off, and environment variables. For a dense model,
# "plain" is flash attention off, and all others are flash attention on.
PATHS: dict[str, tuple[bool, dict[str, str]]] = {
    "plain": (False, {}),
    "reuse": (True, {BUDGET: UNLIMITED}),
    "hybrid": (True, {BUDGET: UNLIMITED, HYBRID: "1"}),
    "recompute": (True, {BUDGET: "0"}),
}
TOKENS = np.random.default_rng(7).integers(3, 2048, (2, N_TOKENS))

Array = npt.NDArray[np.floating[Any]]


def nmse(measured: Array, expected: Array) -> float:
    """Return the normalised mean squared error, as defined in llama.cpp's tests/test-backend-ops.cpp."""
    return float(np.sum((measured - expected) ** 2) / np.sum(expected**2))


@cache
def lib() -> ModuleType:
    """Return the bindings of the patched libllama. Raises RuntimeProblem if the runtime is not built."""
    built = runtime.require()
    return load(built.python, built.bin)


@dataclass(frozen=True)
class Case:
    """A tiny model, in float64 for torch, and as dense GGUF."""

    torch_model: PreTrainedModel
    dense: Path

    def reference(
        self, source_layers: SourceMap, sequence: int = 0, kind: type[SharedReference] = SharedReference
    ) -> Array:
        """Return the logits of torch, float64 [N_TOKENS, n_vocab], for a row of TOKENS."""
        with kind(source_layers).on(self.torch_model):
            logits: Array = self.torch_model(torch.tensor(TOKENS[sequence])[None]).logits[0].numpy()
        return logits

    def shared(self, spans: str, folder: Path) -> Path:
        """Write the SA export of the model as folder / "shared.gguf", and return its path."""
        out = folder / "shared.gguf"
        header = read_header(self.dense)
        facts = read_facts(header)
        write_plan(make_plan(header, facts, spans_map(facts, spans)), [out], None)
        return out


def make_case(heads: str, outtype: str, folder: Path, head_dim: int = tiny_models.HEAD_DIM) -> Case:
    """Return a tiny Llama, `heads` being a key of HEADS in tiny_models.

    With the outtype f16, the torch model has the rounded weights too, so that only the arithmetic differs.
    """
    model = tiny_models.build(tiny_models.HEADS[heads], head_dim)
    folder.mkdir(exist_ok=True)
    source = tiny_models.save(model, folder / f"{heads}-{outtype}")
    dense = folder / f"{heads}-{outtype}.gguf"
    conversions.convert(source, dense, outtype)
    if outtype == "f16":
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.half().float()
    return Case(model.double(), dense)


# ---------------------------------------------------------------- modes of decoding a sequence


def prefill(context: Context, sequence: int = 0) -> Array:
    """Return the logits of a row of TOKENS, decoded in one batch."""
    return context.decode([Token(int(t), i, sequence) for i, t in enumerate(TOKENS[sequence])])


def token_by_token(context: Context, sequence: int = 0) -> Array:
    """Return the logits of a row of TOKENS, decoded in batches of one token."""
    return np.concatenate([context.decode([Token(int(t), i, sequence)]) for i, t in enumerate(TOKENS[sequence])])


def two_sequences(context: Context) -> Array:
    """Decode both rows of TOKENS interleaved in one batch, and return the logits of sequence 1."""
    batch = [Token(int(TOKENS[s][i]), i, s) for i in range(N_TOKENS) for s in (0, 1)]
    return context.decode(batch)[1::2]


@dataclass(frozen=True)
class Mode:
    """A way to decode, the context parameters that it needs, and the row of TOKENS that it returns the logits of."""

    run: Callable[[Context], Array]
    params: dict[str, Any]
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
    """Set environment variables in the block; llama.cpp reads them when a context is created."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def logits(
    file: Path,
    mode: str = "prefill",
    kv: str = "f32",
    path: str = "plain",
    share: SourceMap | None = None,
    library: ModuleType | None = None,
) -> Array:
    """Return the logits of a GGUF for a row of TOKENS, float32 [N_TOKENS, n_vocab].

    mode and path are keys of MODES and PATHS. kv is the type of the KV cache, or the types of K and V ("q8_0/f16").
    share is a source map that is set at run time. library is the patched libllama by default.
    """
    type_k, type_v = (GGML_TYPE[name] for name in (kv.split("/") * 2)[:2])
    params: dict[str, Any] = {"n_ctx": 512, "n_batch": 256, "n_ubatch": 256, "type_k": type_k, "type_v": type_v}
    way, (flash_attn, variables) = MODES[mode], PATHS[path]
    with (
        environment(variables),
        Model(library or lib(), file, share) as model,
        Context(model, flash_attn, **(params | way.params)) as context,
    ):
        return way.run(context)


def error(case: Case, file: Path, spans: str, mode: str, kv: str, path: str = "plain") -> float:
    """Return the NMSE of the SA file `file` of `case` against the torch reference."""
    expected = case.reference(
        source_map(parse_spans(spans, tiny_models.N_LAYER), tiny_models.N_LAYER), MODES[mode].sequence
    )
    return nmse(logits(file, mode, kv, path), expected)


# ---------------------------------------------------------------- wrong references

MUTATED_SPANS = "2-5"


def mutation_error(case: Case, folder: Path, kind: type[SharedReference]) -> float:
    """Return the NMSE of the runtime against a reference with a mistake."""
    source_layers = source_map(parse_spans(MUTATED_SPANS, tiny_models.N_LAYER), tiny_models.N_LAYER)
    expected = case.reference(source_layers, kind=kind)
    return nmse(logits(case.shared(MUTATED_SPANS, folder)), expected)


# ---------------------------------------------------------------- docs/parity.md

PREFACE = """# Parity: the runtime against the torch reference

Normalised mean squared error of the logits, {n} tokens, tiny Llamas of {layers} layers in which attention matters. This
page is made by `python -m tests.support.parity > docs/parity.md`; `tests/llamacpp/test_parity.py` checks it in CI.

The reference is float64 torch (`tests/support/torch_reference.py`). F32 and F16 name the type of the weights and of the
KV cache. Followers get the attention weights on four paths:

- plain: flash attention off; followers reuse the attention weights of the source;
- reuse: flash attention on; followers reuse the attention weights, if there is enough memory for them. No layer then
  runs flash attention;
- hybrid: flash attention outside the spans, reuse within them;
- recompute: flash attention in all layers; followers use the Q and K of the source.

With flash attention, ggml's CPU kernel rounds K and V to f16. The column *dense* is the error that this causes in the
dense model; the SA model may have at most twice this error.
"""


def flash_error_of_dense(case: Case, mode: str) -> float:
    """Return the NMSE of the dense model with flash attention against the dense model without it."""
    return nmse(logits(case.dense, mode, path="recompute"), logits(case.dense, mode))


# Types of the KV cache (K/V) and paths. llama.cpp can quantise V only with flash attention.
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
WIDE = 64  # head size from which llama.cpp applies a Hadamard rotation before it quantises the cache


def cache_errors(case: Case, folder: Path, kv: str, path: str) -> tuple[float, dict[str, float]]:
    """Return the NMSE of the dense model with a cache type, and those of the SA models by spans."""
    everyone_computes = case.reference(tuple(range(tiny_models.N_LAYER)))
    dense = nmse(logits(case.dense, "several ubatches", kv, path), everyone_computes)
    shared = {
        spans: error(case, case.shared(spans, folder), spans, "several ubatches", kv, path) for spans in SPANS.values()
    }
    return dense, shared


def report(folder: Path) -> Iterator[str]:
    """Yield the lines of docs/parity.md; `folder` is for the models."""
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
    yield f"GQA with heads of {WIDE}, F32 weights, several ubatches: the error of the dense model, and the largest"
    yield "error over all spans above. At most twice the error of the dense model is tolerated.\n"
    yield "| K/V | path | dense | SA |"
    yield "| --- | --- | --- | --- |"
    wide = make_case("GQA", "f32", folder / "wide", WIDE)
    for kv, path in CACHES:
        dense, shared = cache_errors(wide, folder, kv, path)
        yield f"| {kv} | {path} | {dense:.1e} | {max(shared.values()):.1e} |"
    yield "\n## Mutations\n"
    yield f"The runtime against a reference with one mistake, spans `{MUTATED_SPANS}`, F32. Each error must be more"
    yield "than 100 times the tolerance.\n"
    yield "| mutation | " + " | ".join(tiny_models.HEADS) + " |"
    yield "| --- |" + " --- |" * len(tiny_models.HEADS)
    for name, kind in MUTATIONS.items():
        errors = [mutation_error(cases[heads, "f32"], folder, kind) for heads in tiny_models.HEADS]
        yield f"| {name} | " + " | ".join(f"{error:.2f}" for error in errors) + " |"
    from tests.support import group_parity  # which imports this module

    yield from group_parity.report(cases, folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for line in report(Path(work)):
            print(line, flush=True)
