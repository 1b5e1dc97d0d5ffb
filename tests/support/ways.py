"""Ways to use a context of llama.cpp, as functions of a loaded model that return numbers. features.py compares them.

Each input is longer than two ubatches, and the context is larger than the tight budget.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.support import dummy_models, parity, small_gguf, training_child
from tests.support.lora_adapters import apply_lora, write_lora
from tests.support.parity import BUDGET, HYBRID, UNLIMITED, Array

ROOT = Path(__file__).parents[2]
N_TOKENS, N_UBATCH, N_CTX = 300, 128, 1024
N_TIGHT = 64  # tokens whose attention weights fit into the tight budget
N_LABELS = 2  # of a reranker
NONE, MEAN, CLS, LAST, RANK = range(5)  # llama_pooling_type

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
    """A small model: how it is written, the map of its SA export, its query heads, and its longest input."""

    write: Callable[[Path], object]
    spans: str
    n_head: int
    n_tokens: int = N_TOKENS
    drop: str | None = None


def _reranker(arch: str) -> Callable[[Path], object]:
    labels = [f"label {i}" for i in range(N_LABELS)]
    return lambda path: dummy_models.make(arch, path, {"classifier.output_labels": labels})


def _decoder(path: Path) -> None:
    small_gguf.write_dense(path, attention_gain=1.7)


KINDS = {
    "decoder": Kind(_decoder, "6-9", small_gguf.N_HEAD),
    "KV groups": Kind(_decoder, "6.0:7.1+8.0+8.1,5.1:10.0", small_gguf.N_HEAD, drop="3,9.1"),
    "reranker": Kind(_reranker("qwen3"), "0-3", dummy_models.N_HEAD, 240),
    "encoder": Kind(_reranker("bert"), "0-3", dummy_models.N_HEAD, 160),
}


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
    """The reference of embeddings(RANK): the classification head on the last token, or the first one of an encoder.

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
    odds: Array = np.exp(pooled)
    odds /= odds.sum(1, keepdims=True)
    return odds


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
