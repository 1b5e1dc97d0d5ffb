"""Each way to use a context, on each path of the attention weights, against a reference; for test_features.py and:

python -m tests.support.features > docs/features.md
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from shareatt_export.llamacpp.engine import Model
from tests.support import parity
from tests.support.exports import export
from tests.support.parity import Array
from tests.support.ways import (
    CLS,
    KINDS,
    LAST,
    MEAN,
    N_CTX,
    N_TIGHT,
    N_TOKENS,
    N_UBATCH,
    NONE,
    PATHS,
    RANK,
    Session,
    control_vector,
    copied_sequence,
    each_alone,
    embeddings,
    generation,
    lora,
    non_causal,
    pooled_by_numpy,
    rank_by_numpy,
    rejected_drafts,
    sequences,
    shifted,
    slots,
    straight,
    training,
    whole_state,
)

EXACT = 1e-9  # NMSE allowed where all is computed in F32
REFERENCE = "plain"


@dataclass(frozen=True)
class Feature:
    """A way to use a context, the model for it, and what its result is compared with.

    `expected` runs on the plain path, with every batch in one ubatch; None stands for `run`.
    """

    run: Callable[[Session], Array]
    expected: Callable[[Session], Array] | None = None
    kind: str = "decoder"


FEATURES: dict[str, Feature] = {
    "generation": Feature(generation),
    "two sequences, one cache": Feature(sequences(kv_unified=True), each_alone),
    "two sequences, a cache each": Feature(sequences(), each_alone),
    "embeddings of all tokens": Feature(embeddings(NONE)),
    "embeddings, mean": Feature(embeddings(MEAN), pooled_by_numpy(MEAN)),
    "embeddings, first token (CLS)": Feature(embeddings(CLS), pooled_by_numpy(CLS)),
    "embeddings, last token": Feature(embeddings(LAST), pooled_by_numpy(LAST)),
    "reranking": Feature(embeddings(RANK), rank_by_numpy, "reranker"),
    "attention without a causal mask": Feature(non_causal),
    "encoder, embeddings of all tokens": Feature(embeddings(NONE), kind="encoder"),
    "encoder, mean": Feature(embeddings(MEAN), pooled_by_numpy(MEAN), "encoder"),
    "encoder, first token (CLS)": Feature(embeddings(CLS), pooled_by_numpy(CLS), "encoder"),
    "encoder, reranking": Feature(embeddings(RANK), rank_by_numpy, "encoder"),
    "LoRA adapter": Feature(lora),
    "control vector": Feature(control_vector),
    "speculative decoding": Feature(rejected_drafts, straight),
    "state of a context": Feature(whole_state, straight),
    "saved slot": Feature(slots, straight),
    "copied sequence, one cache": Feature(copied_sequence(kv_unified=True), straight),
    "copied sequence, a cache each": Feature(copied_sequence(), straight),
    "context shift": Feature(shifted(4, 100)),
    "cache reuse": Feature(shifted(150, 40)),
    "training": Feature(training),
}
# The same for a map in which KV groups follow and are dropped. The adapter here is made for whole layers, and training
# is refused.
FEATURES |= {
    f"{name}, KV groups": replace(feature, kind="KV groups")
    for name, feature in FEATURES.items()
    if feature.kind == "decoder" and feature.run not in (lora, training)
}


@cache
def files(kind: str, folder: Path) -> dict[bool, Path]:
    """Return the dense file and the SA file (True) of a small model."""
    dense = folder / f"{kind}.gguf"
    KINDS[kind].write(dense)
    return {False: dense, True: export(dense, folder / f"{kind}-shared.gguf", KINDS[kind].spans, drop=KINDS[kind].drop)}


@cache
def result(name: str, path: str, folder: Path) -> Array:
    """Run the feature `name` on a path."""
    feature = FEATURES[name]
    with Model(parity.lib(), files(feature.kind, folder)[PATHS[path][2]], load_mode=0) as model:
        return feature.run(Session(model, path, KINDS[feature.kind], folder, whole=False))


@cache
def expected(name: str, shares: bool, folder: Path) -> Array:
    """Return what the feature `name` is compared with: for the SA model if it `shares`, else for the dense model."""
    feature = FEATURES[name]
    with Model(parity.lib(), files(feature.kind, folder)[shares], load_mode=0) as model:
        return (feature.expected or feature.run)(Session(model, REFERENCE, KINDS[feature.kind], folder, whole=True))


def error(name: str, path: str, folder: Path) -> float:
    """Return the NMSE of a feature on a path against its reference."""
    return parity.nmse(result(name, path, folder), expected(name, PATHS[path][2], folder))


def tolerance(name: str, path: str, folder: Path) -> float:
    """Return the NMSE that is allowed.

    Flash attention rounds K and V to f16: twice the largest error that it has in the dense model of the same kind. An
    encoder may have this error on any path, because its GELU is a table of f16 numbers: a difference in the last bit
    can become one of f16.
    """
    kind = FEATURES[name].kind
    if path in ("plain", "reuse") and kind != "encoder":
        return EXACT
    return 2 * max(error(other, "dense", folder) for other, feature in FEATURES.items() if feature.kind == kind)


# ---------------------------------------------------------------- docs/features.md

PREFACE = f"""# Ways to use a model, and what was measured of them

Normalised mean squared error (NMSE) of the result of each way, on small models with F32 weights and caches. Inputs have
{N_TOKENS} tokens ({KINDS["reranker"].n_tokens} for rerankers, {KINDS["encoder"].n_tokens} for encoders), a ubatch
has {N_UBATCH}, and a context has {N_CTX}. This page is made by `python -m tests.support.features > docs/features.md`;
`tests/llamacpp/test_features.py` checks every cell.

The reference is the same model on the plain path, with the whole input in one ubatch. Pooled embeddings and the scores
of rerankers are compared with the embeddings of all tokens, pooled in numpy; speculative decoding, states, slots and
copies with the same text in one batch. The plain path itself is held against torch in [Parity](parity.md).

- dense: the dense model, flash attention on;
- plain: the SA model, flash attention off;
- reuse: flash attention on, and enough memory for the attention weights of any ubatch;
- tight budget: the same with memory for {N_TIGHT} tokens. Batches are split into ubatches of that size; where that is
  not allowed (pooling, no causal mask, encoders), followers recompute;
- hybrid: flash attention outside the spans, reuse within them;
- recompute: no memory for attention weights.
"""
REASONS = """
Flash attention rounds K and V to f16, in the dense model too; an SA model may have at most twice the largest error of
its dense model. Training is compared by the loss of two epochs; it switches flash attention off.

## Several devices

| way | state |
| --- | --- |
| `-sm layer`, a span on two devices | measured on two RPC servers, `tests/llamacpp/test_rpc.py`; followers recompute |
| `-sm none` | as above: one device |
| `-sm row` | not measured: it needs a GPU backend with split buffers (CUDA, SYCL) |
| `-sm tensor` | refused: heads of a source and its followers may be on different devices (`test_rpc.py`) |

## Programs

llama-server with slots, context shift and the OpenAI client: `tests/llamacpp/test_server.py`; upstream's own server
tests: [upstream-tests.md](upstream-tests.md); speculative decoding: `test_speculative.py`; llama-completion with a
prompt cache: `test_memory.py`.
"""


def report(folder: Path) -> Iterator[str]:
    """Yield the lines of docs/features.md; `folder` is for the models."""
    yield PREFACE
    yield "| way | " + " | ".join(PATHS) + " |"
    yield "| --- |" + " --- |" * len(PATHS)
    for name in FEATURES:
        yield f"| {name} | " + " | ".join(f"{error(name, path, folder):.1e}" for path in PATHS) + " |"
    yield REASONS.rstrip()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for line in report(Path(work)):
            print(line, flush=True)
