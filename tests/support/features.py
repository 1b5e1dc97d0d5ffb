"""Use a context in every way that llama.cpp offers, on every path of the attention weights, for test_features.py and:

python -m tests.support.features > docs/features.md

Each input is longer than two ubatches, and the context is larger than the tight budget. What is compared is in FEATURES.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.support import dummy_models, parity, small_gguf, training_child
from tests.support.exports import export
from tests.support.lora_adapters import apply_lora, write_lora
from tests.support.parity import BUDGET, HYBRID, UNLIMITED, Array

ROOT = Path(__file__).parents[2]
N_TOKENS, N_UBATCH, N_CTX = 300, 128, 1024
N_TIGHT = 64  # tokens whose attention weights fit into the tight budget
N_LABELS = 2  # of a reranker
NONE, MEAN, CLS, LAST, RANK = range(5)  # llama_pooling_type
EXACT = 1e-9  # NMSE allowed where all is computed in F32
REFERENCE = "plain"

# Flash attention, environment variables, and whether the model shares. All caches are F32.
PATHS: dict[str, tuple[bool, dict[str, str], bool]] = {
    "dense": (True, {}, False),
    "plain": (False, {}, True),
    "reuse": (True, {BUDGET: UNLIMITED}, True),
    "tight budget": (True, {}, True),  # the variable depends on the context: Session.tight_budget()
    "hybrid": (True, {BUDGET: UNLIMITED, HYBRID: "1"}, True),
    "recompute": (True, {BUDGET: "0"}, True),
}


@dataclass(frozen=True)
class Kind:
    """A small model: how it is written, the span of its SA export, its query heads, and its longest input."""

    write: Callable[[Path], object]
    spans: str
    n_head: int
    n_tokens: int = N_TOKENS


def _reranker(arch: str) -> Callable[[Path], object]:
    labels = [f"label {i}" for i in range(N_LABELS)]
    return lambda path: dummy_models.make(arch, path, {"classifier.output_labels": labels})


KINDS = {
    "decoder": Kind(lambda path: small_gguf.write_dense(path, attention_gain=1.7), "6-9", small_gguf.N_HEAD),
    "reranker": Kind(_reranker("qwen3"), "0-3", dummy_models.N_HEAD, 240),
    "encoder": Kind(_reranker("bert"), "0-3", dummy_models.N_HEAD, 160),
}


@cache
def files(kind: str, folder: Path) -> dict[bool, Path]:
    """Return the dense file and the SA file (True) of a small model."""
    dense = folder / f"{kind}.gguf"
    KINDS[kind].write(dense)
    return {False: dense, True: export(dense, folder / f"{kind}-shared.gguf", KINDS[kind].spans)}


@dataclass(frozen=True)
class Session:
    """A loaded model on a path. With `whole`, every batch is one ubatch: no feature can go wrong at its border."""

    model: Model
    path: str
    kind: Kind
    folder: Path
    whole: bool

    @contextmanager
    def context(self, **params: Any) -> Iterator[Context]:
        """Open a context of N_CTX tokens with F32 caches; `params` are fields of llama_context_params."""
        flash_attn, variables, _ = PATHS[self.path]
        size = {"n_ctx": N_CTX, "n_batch": N_CTX, "n_ubatch": N_CTX if self.whole else N_UBATCH}
        fields = size | {"type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1} | params
        if self.path == "tight budget":
            n_stream = 1 if params.get("kv_unified") else params.get("n_seq_max", 1)
            variables = {
                BUDGET: self.tight_budget(self.kind.n_tokens if _is_encoder(self) else fields["n_ctx"] // n_stream)
            }
        with parity.environment(variables), Context(self.model, flash_attn, **fields) as context:
            yield context

    def tight_budget(self, n_cells: int) -> str:
        """Return the bytes of the attention weights of N_TIGHT tokens, as F32, over n_cells positions."""
        return str(N_TIGHT * self.kind.n_head * n_cells * 4)

    def tokens(self, n: int | None = None, first: int = 0, sequence: int = 0) -> list[Token]:
        """Return n tokens of a fixed text of this sequence, from position `first` on; as many as the model takes."""
        n = n or self.kind.n_tokens
        text = np.random.default_rng(sequence).integers(0, self.model.n_vocab, first + n)
        return [Token(int(text[i]), i, sequence) for i in range(first, first + n)]


# ---------------------------------------------------------------- ways to use a context


def generation(session: Session) -> Array:
    """Decode a prompt, and then ten tokens one by one."""
    n = session.kind.n_tokens
    with session.context() as context:
        rows = [context.decode(session.tokens())]
        rows += [context.decode(session.tokens(1, n + i)) for i in range(10)]
        return np.concatenate(rows)


def sequences(**params: Any) -> Callable[[Session], Array]:
    """Decode two sequences in one batch, interleaved; the reference decodes each alone."""

    def run(session: Session) -> Array:
        batch = [token for pair in zip(session.tokens(), session.tokens(sequence=1), strict=True) for token in pair]
        with session.context(n_seq_max=2, **({"n_ctx": 2 * N_CTX} | params)) as context:
            logits = context.decode(batch)
            return np.concatenate([logits[::2], logits[1::2]])

    return run


def each_alone(session: Session) -> Array:
    """The reference of sequences()."""
    rows = []
    for sequence in (0, 1):
        with session.context(n_seq_max=2, kv_unified=True) as context:
            rows.append(context.decode(session.tokens(sequence=sequence)))
    return np.concatenate(rows)


def embeddings(pooling: int) -> Callable[[Session], Array]:
    """Pool each of two sequences into one row, or return a row per token. The whole batch must be one ubatch."""

    def run(session: Session) -> Array:
        n = session.kind.n_tokens
        batch = session.tokens() + session.tokens(n // 2, sequence=1)
        n_ubatch = {"n_ubatch": len(batch)} if pooling not in (NONE, LAST) or _is_encoder(session) else {}
        params: dict[str, Any] = {"embeddings": True, "pooling_type": pooling, "n_seq_max": 2, "kv_unified": True}
        with session.context(**params | n_ubatch) as context:
            rows = context.embed(batch)
            if pooling == NONE:
                return rows
            lib, width = session.model.lib, N_LABELS if pooling == RANK else rows.shape[1]
            pooled = [lib.llama_get_embeddings_seq(context.handle, sequence) for sequence in (0, 1)]
            return np.array([row[:width] for row in pooled])

    return run


def pooled_by_numpy(pooling: int) -> Callable[[Session], Array]:
    """The reference of embeddings(): the rows of all tokens, pooled here."""

    def run(session: Session) -> Array:
        rows, n = embeddings(NONE)(session), session.kind.n_tokens
        first, second = rows[:n], rows[n:]
        pool: Callable[[Array], Array] = {
            MEAN: lambda row: row.mean(0),
            CLS: lambda row: row[0],
            LAST: lambda row: row[-1],
        }[pooling]
        return np.array([pool(first), pool(second)])

    return run


def rank_by_numpy(session: Session) -> Array:
    """The reference of embeddings(RANK): the classification head on the last token of a decoder, or the first of an encoder.

    Qwen3 has a softmax behind it.
    """
    pooled = pooled_by_numpy(CLS if _is_encoder(session) else LAST)(session)
    header = read_header(session.model.path)

    def weight(name: str) -> Array | None:
        tensor = header.tensors.get(name)
        if tensor is None:
            return None
        count = int(np.prod(tensor.shape))
        return np.fromfile(session.model.path, np.float32, count, offset=tensor.offset).reshape(tensor.shape[::-1])

    if (head := weight("cls.weight")) is not None:
        bias = weight("cls.bias")
        pooled = np.tanh(pooled @ head.T + (0 if bias is None else bias))
    if (out := weight("cls.output.weight")) is not None:
        bias = weight("cls.output.bias")
        pooled = pooled @ out.T + (0 if bias is None else bias)
    if _is_encoder(session):
        return pooled
    odds = np.exp(pooled)
    return odds / odds.sum(1, keepdims=True)


def _is_encoder(session: Session) -> bool:
    return session.kind is KINDS["encoder"]


def non_causal(session: Session) -> Array:
    """Let all tokens of a batch attend to each other, as llama_set_causal_attn() switches on."""
    with session.context(n_ubatch=N_CTX) as context:
        session.model.lib.llama_set_causal_attn(context.handle, False)
        return context.decode(session.tokens())


def lora(session: Session) -> Array:
    """Decode with a LoRA adapter on a follower's V and output and on its source's Q."""
    names = ["blk.6.attn_q", "blk.8.attn_v", "blk.8.attn_output"]
    adapter = write_lora(session.folder / "lora.gguf", names)
    with session.context() as context:
        apply_lora(session.model, context, adapter)
        return context.decode(session.tokens())


def control_vector(session: Session) -> Array:
    """Decode with a vector added to the outputs of the source and of a follower."""
    rows = np.zeros((session.model.n_layer - 1, small_gguf.N_EMBD), np.float32)
    rows[[5, 7]] = np.random.default_rng(4).standard_normal((2, small_gguf.N_EMBD))
    data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    with session.context() as context:
        arguments = data, rows.size, small_gguf.N_EMBD, 1, session.model.n_layer
        assert session.model.lib.llama_set_adapter_cvec(context.handle, *arguments) == 0
        return context.decode(session.tokens())


def rejected_drafts(session: Session) -> Array:
    """Check drafts of 8 tokens as speculative decoding does: five of them are wrong and are removed again."""
    n, lib = session.kind.n_tokens, session.model.lib
    with session.context() as context:
        rows = [context.decode(session.tokens())]
        for first in range(n, n + 12, 3):
            wrong = [
                Token((token.id + 1) % session.model.n_vocab, token.position) for token in session.tokens(5, first + 3)
            ]
            rows.append(context.decode(session.tokens(3, first) + wrong)[:3])
            assert lib.llama_memory_seq_rm(context.memory, 0, first + 3, -1)
        return np.concatenate(rows)


def straight(session: Session) -> Array:
    """The reference of all ways that end with the same text: decode it in one batch."""
    with session.context() as context:
        return context.decode(session.tokens(session.kind.n_tokens + 12))


def whole_state(session: Session) -> Array:
    """Save the state of a context, restore it into a new one, and go on there."""
    n = session.kind.n_tokens
    with session.context() as context:
        rows = [context.decode(session.tokens())]
        state = context.state()
    with session.context() as context:
        assert context.restore(state)
        return np.concatenate([*rows, context.decode(session.tokens(12, n))])


def slots(session: Session) -> Array:
    """Save one sequence, as a server saves a slot, and restore it as another sequence, beside others."""
    n = session.kind.n_tokens
    with session.context(n_seq_max=3, n_ctx=3 * N_CTX) as context:
        rows = [context.decode(session.tokens())]
        context.decode(session.tokens(sequence=1))
        assert context.restore_sequence(context.sequence_state(0), 2)
        rows.append(context.decode([Token(token.id, token.position, 2) for token in session.tokens(12, n)]))
        return np.concatenate(rows)


def copied_sequence(**params: Any) -> Callable[[Session], Array]:
    """Continue a copy of a sequence, as parallel answers to one prompt do."""

    def run(session: Session) -> Array:
        n = session.kind.n_tokens
        with session.context(n_seq_max=2, **({"n_ctx": 2 * N_CTX} | params)) as context:
            rows = [context.decode(session.tokens())]
            context.copy_sequence(0, 1)
            rows.append(context.decode([Token(token.id, token.position, 1) for token in session.tokens(12, n)]))
            return np.concatenate(rows)

    return run


def shifted(first: int, removed: int) -> Callable[[Session], Array]:
    """Remove tokens from the cache, move those behind them to the front, and go on."""

    def run(session: Session) -> Array:
        n, lib = session.kind.n_tokens, session.model.lib
        with session.context() as context:
            context.decode(session.tokens())
            assert lib.llama_memory_seq_rm(context.memory, 0, first, first + removed)
            lib.llama_memory_seq_add(context.memory, 0, first + removed, -1, -removed)
            return context.decode(session.tokens(200, n - removed))

    return run


def training(session: Session) -> Array:
    """Return the losses of two epochs of training, in a child process: an operation without gradient aborts it."""
    flash_attn, variables, _ = PATHS[session.path]
    if session.path == "tight budget":
        variables = {BUDGET: session.tight_budget(training_child.N_CTX)}
    command = [sys.executable, "-m", "tests.support.training_child", session.model.path, int(flash_attn)]
    environment = os.environ | variables
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[:400]}")
    return np.array(json.loads(done.stdout))


# ---------------------------------------------------------------- the matrix


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

    Flash attention rounds K and V to f16: twice the largest error that it has in the dense model of the same kind. So may
    an encoder on any path, because its GELU is a table of f16 numbers, in which a difference in the last bit becomes one
    of f16.
    """
    kind = FEATURES[name].kind
    if path in ("plain", "reuse") and kind != "encoder":
        return EXACT
    return 2 * max(error(other, "dense", folder) for other, feature in FEATURES.items() if feature.kind == kind)


# ---------------------------------------------------------------- docs/features.md

PREFACE = f"""# Ways to use a model, and what was measured of them

Normalised mean squared error (NMSE) of the result of each way, on small models with F32 weights and caches. Inputs have
{N_TOKENS} tokens ({KINDS["reranker"].n_tokens} and {KINDS["encoder"].n_tokens} for rerankers and encoders), a ubatch has {N_UBATCH}, and a context has {N_CTX}.
This page is made by `python -m tests.support.features > docs/features.md`; `tests/llamacpp/test_features.py` checks every
cell.

The reference is the same model on the plain path, with the whole input in one ubatch. Pooled embeddings and the scores of
rerankers are compared with the embeddings of all tokens, pooled in numpy; speculative decoding, states, slots and copies
with the same text in one batch. The plain path itself is held against torch in [parity.md](parity.md).

- dense: the dense model, flash attention on;
- plain: the SA model, flash attention off;
- reuse: flash attention on, and enough memory for the attention weights of any ubatch;
- tight budget: the same with memory for {N_TIGHT} tokens. Batches are split into ubatches of that size. Where that is not
  allowed (pooling, no causal mask, encoders), followers recompute;
- hybrid: flash attention outside the spans, reuse within them;
- recompute: no memory for attention weights.
"""
REASONS = """
Flash attention rounds K and V to f16, in the dense model too; an SA model may have at most twice the largest error of its
dense model. Training is compared by the loss of two epochs; it switches flash attention off.

## Several devices

| way | state |
| --- | --- |
| `-sm layer`, a span on two devices | measured in `tests/llamacpp/test_rpc.py` on two RPC servers; followers recompute |
| `-sm none` | as above: one device |
| `-sm row` | not measured: it needs a GPU backend with split buffers (CUDA, SYCL) |
| `-sm tensor` | refused when the model is loaded, as the heads of a source and its followers may be on different devices |

## Programs

llama-server with slots, context shift, cache reuse, LoRA adapters, embeddings and speculative decoding:
`tests/llamacpp/test_server.py`, `test_speculative.py`. llama-completion with a prompt cache: `test_memory.py`.
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
