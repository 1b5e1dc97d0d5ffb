"""The memory for attention weights: by default what the followers save of the K cache, or what the user sets."""

import ctypes
import re
from pathlib import Path

import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.model.facts import read_facts
from tests.support import conversions, parity, tiny_models
from tests.support.exports import export

N_CTX = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budget")


def n_ubatch(file: Path, variables: dict[str, str], **params: object) -> tuple[int, str]:
    """Return the number of tokens, of 512, in a ubatch whose attention weights fit the budget; and the log."""
    params = {"n_ctx": N_CTX, "n_ubatch": 512} | params
    with parity.environment(variables), Model(parity.lib(), file) as model, Context(model, True, **params) as context:
        said = re.findall(r"followers reuse the attention weights of up to (\d+) tokens", context.log)
        return min([512, *map(int, said)]), context.log


# With the last spans, the attention weights of two layers are in use at once. Layer 1 of the spans before keeps none.
@pytest.mark.parametrize("params", [{}, {"n_ctx": 1024}, {"n_seq_max": 2}], ids=["", "context", "streams"])
@pytest.mark.parametrize("spans", ["2-5", "0-7", "0-3,4-7", "every:2", "0:2-7", "0:2+4+6,1:3+5+7"])
@pytest.mark.parametrize("heads", tiny_models.HEADS)
def test_the_probabilities_take_what_the_followers_save(cases, folder, heads, spans, params):
    """Per cache cell: 2 bytes (F16) for each head and token of the ubatch, times the spans that are alive at once."""
    file = cases[heads, "f16"].shared(spans, folder)
    facts = read_facts(read_header(file))
    n_followers = sum(source != layer for layer, source in enumerate(facts.attention.source_layers))
    n_stream = params.get("n_seq_max", 1)
    saved = n_followers * facts.n_embd_k(0) * 2 * params.get("n_ctx", N_CTX)
    n_alive = 2 if spans.endswith(",1:3+5+7") else 1
    fits = saved // (2 * n_alive * facts.n_head[0] * (params.get("n_ctx", N_CTX) // n_stream))
    size, log = n_ubatch(file, {}, **params)
    if fits < 64:
        assert size == 512 and "followers recompute the attention weights" in log
    else:
        assert size == min(fits - fits % 16, 512) and "followers recompute" not in log


def test_the_user_can_say_otherwise(cases, folder):
    file = cases["GQA", "f16"].shared("0-7", folder)
    per_token = 2 * tiny_models.N_HEAD * N_CTX
    assert n_ubatch(file, {parity.BUDGET: parity.UNLIMITED})[0] == 512
    assert n_ubatch(file, {parity.BUDGET: str(200 * per_token)})[0] == 192
    assert n_ubatch(file, {parity.BUDGET: str(64 * per_token)})[0] == 64
    for too_little in (0, 64 * per_token - 1):
        size, log = n_ubatch(file, {parity.BUDGET: str(too_little)})
        assert size == 512 and "followers recompute" in log


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize(
    ("variable", "text", "meaning"),
    [(parity.BUDGET, text, "a number of bytes") for text in ("", "1e9", "-1", "64MB", "99999999999999999999999")]
    + [(parity.HYBRID, text, "0 or 1") for text in ("", "true", "2", "-1")],
)
def test_another_value_of_a_variable_is_refused(cases, folder, monkeypatch, variable, text, meaning, flash_attn):
    monkeypatch.setenv(variable, text)
    file = cases["GQA", "f16"].shared("0-7", folder)
    message = f"{variable}: '{text}' is not {meaning}"
    with Model(parity.lib(), file) as model, pytest.raises(RuntimeProblem, match=message):
        Context(model, flash_attn)
    with Model(parity.lib(), cases["GQA", "f16"].dense) as model, Context(model, flash_attn):
        pass  # a dense model has no use for the variables


def buffers(file: Path, **params: object) -> float:
    """Return the MiB of the KV cache and of the compute buffers."""
    _, log = n_ubatch(file, {}, n_ctx=16384, **params)
    return sum(map(float, re.findall(r"(?:KV|compute) buffer size = +([0-9.]+) MiB", log)))


@pytest.mark.parametrize("spans", ["2-5", "0-7", "0-3,4-7", "every:2"])
@pytest.mark.parametrize("heads", tiny_models.HEADS)
def test_never_more_memory_than_the_dense_model(cases, folder, heads, spans):
    case = cases[heads, "f16"]
    assert buffers(case.shared(spans, folder)) <= buffers(case.dense)


@pytest.mark.parametrize("mode", parity.MODES)
def test_within_the_budget_the_logits_are_the_same(cases, folder, mode):
    """The budget cuts the ubatch; only this test uses the default budget."""
    case, way = cases["GQA", "f16"], parity.MODES[mode]
    params = {"n_ctx": 512, "n_ubatch": 256} | way.params
    with Model(parity.lib(), case.shared("0-7", folder)) as model, Context(model, True, **params) as context:
        ours = way.run(context)
    expected = case.reference((0,) * tiny_models.N_LAYER, way.sequence)
    assert parity.nmse(ours, expected) <= parity.TOLERANCE["f16"]


def sizes_of_ubatches(file: Path, n_tokens: int, *, causal: bool) -> list[tuple[str, int]]:
    """Return for each ubatch whether layer 0 "reuses" or "recomputes", and its tokens."""
    lib, found, weights = parity.lib(), [], []
    name, rows = lib._lib.ggml_get_name, lib._lib.ggml_nrows
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    rows.argtypes, rows.restype = [ctypes.c_void_p], ctypes.c_int64

    @lib.ggml_backend_sched_eval_callback
    def look(tensor, ask, data):
        if ask and name(tensor) == b"kq_soft_max-0":
            weights.append(rows(tensor) // tiny_models.N_HEAD)
        if ask and name(tensor) == b"kqv_out-0":  # flash attention has no node for the weights before it
            found.append(("reuses", weights.pop()) if weights else ("recomputes", rows(tensor)))
        return False

    params = {"n_ctx": N_CTX, "n_batch": 2048, "n_ubatch": 2048, "cb_eval": look}
    with Model(lib, file) as model, Context(model, True, **params) as context:
        lib.llama_set_causal_attn(context.handle, causal)
        context.decode([Token(5, i) for i in range(n_tokens)])
    return found


def test_batches_are_split_by_it(cases, folder):
    """A graph with more tokens would need more memory than the context has reserved."""
    file = cases["GQA", "f16"].shared("0-7", folder)
    assert sizes_of_ubatches(file, 300, causal=True) == [("reuses", 112), ("reuses", 112), ("reuses", 76)]


def test_a_ubatch_that_must_not_be_split_recomputes(cases, folder):
    """Without a causal mask all tokens must see each other."""
    file = cases["GQA", "f16"].shared("0-7", folder)
    assert sizes_of_ubatches(file, 100, causal=False) == [("reuses", 100)]
    assert sizes_of_ubatches(file, 300, causal=False) == [("recomputes", 300)]


@pytest.mark.parametrize("arch", tiny_models.SLIDING)
def test_the_caches_of_a_sliding_window_share_it(built, folder, arch):
    """The last 2 * 64 tokens' worth is not enough for both of two caches, once each has its share."""
    source = tiny_models.save(tiny_models.build_sliding(arch), folder / arch)
    dense = conversions.convert(source, folder / f"{arch}.gguf", "f16")
    shared = export(dense, folder / f"{arch}-shared.gguf", "2-7" if arch == "gemma2" else "0-11")
    per_token = 2 * tiny_models.N_HEAD * N_CTX
    sizes = {}
    for n in (64, 128):
        variables = {parity.BUDGET: str(n * per_token)}
        params = {"n_ctx": N_CTX, "n_ubatch": 512, "swa_full": True}
        with (
            parity.environment(variables),
            Model(parity.lib(), shared) as model,
            Context(model, True, **params) as context,
        ):
            sizes[n] = re.findall(r"followers (reuse|recompute)", context.log)
    assert sizes == {64: ["recompute"] * 2, 128: ["reuse"] * 2}
