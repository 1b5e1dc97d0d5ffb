"""Operations that a context of an SA model cannot do are refused with a reason; the others give the same logits."""

import subprocess

import numpy as np
import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.parity import GGML_TYPE, nmse
from tests.support.small_gguf import F32_CACHE, tokens

pytestmark = pytest.mark.fault("M")

F16 = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1}


@pytest.fixture(scope="module")
def shared(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    return export(small_gguf.write_dense(folder / "dense.gguf"), folder / "shared.gguf")


def logits(path, flash_attn=None, **options):
    with Model(parity.lib(), path) as model, Context(model, flash_attn, **options) as context:
        return context.decode(tokens(20))


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_quantised_values_need_flash_attention(shared, type):
    with pytest.raises(RuntimeProblem, match="quantized V cache requires flash_attn to be enabled"):
        logits(shared, False, type_v=GGML_TYPE[type], **F16)


@pytest.mark.parametrize(
    ("flash_attn", "options", "tolerance"),
    [
        (True, F32_CACHE, 1e-4),
        (None, F32_CACHE, 1e-4),
        (None, F16, 1e-4),
        (True, F32_CACHE | {"n_ubatch": 4}, 1e-4),
    ],
    ids=["flash attention on", "auto", "f16", "small ubatches"],
)
def test_what_works_says_the_same(shared, flash_attn, options, tolerance):
    assert nmse(logits(shared, flash_attn, **options), logits(shared, False, **F32_CACHE)) < tolerance


@pytest.mark.parametrize("pooling", [0, 1, 3], ids=["of each token", "mean", "last"])
def test_embeddings_are_those_of_the_last_layer(shared, pooling):
    """With flash attention and without it."""
    seen = []
    for flash_attn in (False, True):
        options = F32_CACHE | {"embeddings": True, "pooling_type": pooling}
        with Model(parity.lib(), shared) as model, Context(model, flash_attn, **options) as context:
            context._submit(tokens(20), range(20))
            of = context.lib.llama_get_embeddings if pooling == 0 else context.lib.llama_get_embeddings_seq
            data = of(context.handle) if pooling == 0 else of(context.handle, 0)
            seen.append(context._rows(data, 20 if pooling == 0 else 1, small_gguf.N_EMBD))
    assert np.isfinite(seen[0]).all() and np.any(seen[0]) and nmse(seen[1], seen[0]) < 1e-4


def test_a_split_by_rows_of_tensors_is_no_crash(shared):
    """llama.cpp does not support this mode on one processor either."""
    command = [runtime.tool("llama-completion"), "-m", shared, "-p", "x", "-n", 8, "-no-cnv", "-sm", "tensor"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # the program sometimes loses the end of its log
