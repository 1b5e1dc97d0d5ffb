"""Uses of a model and its cache other than decoding: ways to load, threads, embeddings, removed sequences."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shareatt_export.formats.gguf_encode import raw_array_i32
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.parity import nmse
from tests.support.small_gguf import F32_CACHE, tokens
from tests.support.source_layers import SOURCE_LAYERS, SOURCE_LAYERS_ARGUMENT

LOAD_MODES = {"read": 0, "mmap": 1, "direct I/O": 4}
MEAN, LAST = 1, 3  # llama_pooling_type


@pytest.fixture(scope="module")
def shared(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return export(small_gguf.write_dense(folder / "dense.gguf"), folder / "shared.gguf")


@pytest.fixture(scope="module")
def model(shared):
    with Model(parity.lib(), shared) as model:
        yield model


@pytest.mark.parametrize("q8_0", [False, True])
def test_every_way_to_load_gives_the_same_logits(built, tmp_path, q8_0):
    """Also for a file with tensors that are not loaded."""
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", q8_0=q8_0)
    marked = small_gguf.with_metadata(
        dense, tmp_path / "marked.gguf", **{SOURCE_LAYERS_ARGUMENT: raw_array_i32(SOURCE_LAYERS)}
    )
    logits, ways = [], set()
    for path in (export(dense, tmp_path / "shared.gguf"), marked):
        for mode in LOAD_MODES.values():
            with Model(parity.lib(), path, load_mode=mode) as model, Context(model, False, **F32_CACHE) as context:
                ways.add(model.log.split("load_mode = ")[1].split()[0])
                logits.append(context.decode(tokens(20)))
    assert len(ways) == len(LOAD_MODES)
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


@pytest.mark.parametrize("flash_attn", [False, True])
def test_threads_change_nothing(model, flash_attn):
    logits = []
    for n in (1, 2, 4):
        with Context(model, flash_attn, **F32_CACHE | {"n_threads": n, "n_threads_batch": n}) as context:
            logits.append(np.concatenate([context.decode(tokens(20)), context.decode(tokens(1, 20))]))
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


@pytest.mark.parametrize("flash_attn", [False, True])
def test_two_contexts_at_once(shared, tmp_path, flash_attn):
    """The attention weights of a source belong to one context, also while another context builds its graphs."""
    path = export(shared.with_name("dense.gguf"), tmp_path / "shared.gguf", "0-11")  # a long way to the last follower

    def generate(model, first):
        at, logits = 0, []
        with Context(model, flash_attn, **F32_CACHE) as context:
            for i in range(60):
                n = 1 + (first + i) % 4  # never the same number twice, so that graphs are rebuilt
                logits.append(context.decode([Token((first * k + 3) % 32, k) for k in range(at, at + n)]))
                at += n
        return np.concatenate(logits)

    with Model(parity.lib(), path) as model:
        alone = [generate(model, first) for first in (5, 11)]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(generate, (model, model), (5, 11)))
    assert all(np.array_equal(one, two) for one, two in zip(alone, together, strict=True))


# ---------------------------------------------------------------- embeddings


def embeddings(model, flash_attn, pooling, n_sequences):
    """Return the embeddings of sequences of 9 and 14 tokens: a row for each token, or for each sequence."""
    batch = [token for sequence in range(n_sequences) for token in tokens(9 + 5 * sequence, sequence=sequence)]
    # one stream, because llama.cpp pools each ubatch by itself, and streams of unequal length take several
    params = {"embeddings": True, "pooling_type": pooling, "n_seq_max": n_sequences, "kv_unified": True}
    with Context(model, flash_attn, **F32_CACHE | params) as context:
        context.decode(batch)
        if pooling:
            rows = [model.lib.llama_get_embeddings_seq(context.handle, sequence) for sequence in range(n_sequences)]
        else:
            rows = [model.lib.llama_get_embeddings_ith(context.handle, i) for i in range(len(batch))]
        return np.array([row[: small_gguf.N_EMBD] for row in rows])


@pytest.mark.parametrize("flash_attn", [False, True])
def test_embeddings_are_what_the_logits_come_from(model, shared, flash_attn):
    table = read_header(shared).tensors["token_embd.weight"]  # the output projection too
    weight = np.fromfile(shared, np.float32, small_gguf.N_VOCAB * small_gguf.N_EMBD, offset=table.offset).reshape(
        small_gguf.N_VOCAB, small_gguf.N_EMBD
    )
    with Context(model, flash_attn, **F32_CACHE) as context:
        expected = context.decode(tokens(9))
    assert nmse(embeddings(model, flash_attn, 0, 1) @ weight.T, expected) < 1e-10


@pytest.mark.parametrize("flash_attn", [False, True])
def test_pooled_embeddings(model, flash_attn):
    each = embeddings(model, flash_attn, 0, 2)
    first, second = each[:9], each[9:]
    assert nmse(embeddings(model, flash_attn, MEAN, 2), np.array([first.mean(0), second.mean(0)])) < 1e-10
    assert nmse(embeddings(model, flash_attn, LAST, 2), np.array([first[-1], second[-1]])) < 1e-10


# ---------------------------------------------------------------- the cache


def test_only_one_sequence_is_kept(model):
    """The kept sequence continues unchanged, and the cells of the other are free for a new one."""
    params = F32_CACHE | {"n_seq_max": 2, "kv_unified": True}  # llama.cpp removes only sequences of the same stream
    with Context(model, False, **params) as context:
        context.decode(tokens(30, sequence=1))
        expected = context.decode(tokens(4, 30, sequence=1))
    with Context(model, False, **params) as context:
        first = context.decode(tokens(20, sequence=0))
        context.decode(tokens(30, sequence=1))
        context.lib.llama_memory_seq_keep(context.memory, 1)
        assert context.lib.llama_memory_seq_pos_max(context.memory, 0) == -1
        assert nmse(context.decode(tokens(20, sequence=0)), first) < 1e-10
        assert nmse(context.decode(tokens(4, 30, sequence=1)), expected) < 1e-10


def complete(built, model, cache):
    """Return the exit status of llama-completion, its text, and its log."""
    command = [built.bin / "llama-completion", "-m", model, "--prompt-cache", cache, "-lv", "4", "-t", "1", "-no-cnv"]
    command += ["-p", "import os\n\ndef read(path):", "-n", "12", "--temp", "0", "--ignore-eos"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def test_prompt_cache(demo_dense, built, tmp_path):
    """llama-completion continues from its cache file with the same text; the dense model refuses the file."""
    shared, cache = export(demo_dense, tmp_path / "shared.gguf"), tmp_path / "prompt.cache"
    status, text, said = complete(built, shared, cache)
    assert status == 0 and len(text.split("def read(path):")[1]) > 12 and "will create" in said
    again = complete(built, shared, cache)
    assert again[:2] == (0, text) and "session file has exact match for prompt" in again[2]
    assert complete(built, demo_dense, cache)[:2] == (1, "")
