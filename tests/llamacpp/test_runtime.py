"""The patched llama.cpp beside the arithmetic: bad source maps, states, K-shift, sequences, and the patch itself."""

import ctypes
import importlib
import re
import subprocess

import numpy as np
import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.formats.gguf_encode import raw_array_i32
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.bindings import SharedAttention
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.llamacpp.pin import patch_dir, pin
from shareatt_export.llamacpp.source import apply_patch, stock_source
from shareatt_export.model.facts import read_facts
from shareatt_export.model.map_text import parse_map
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.parity import nmse
from tests.support.small_gguf import F32_CACHE, tokens
from tests.support.source_layers import SOURCE_LAYERS, SOURCE_LAYERS_ARGUMENT, SOURCE_LAYERS_KEY


@pytest.fixture(scope="module")
def files(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    dense = small_gguf.write_dense(folder / "dense.gguf")
    return dense, export(dense, folder / "shared.gguf"), folder


@pytest.fixture(params=parity.PATHS)
def path(request):
    """A way in which followers get the attention weights, set for the contexts of the test."""
    with parity.environment(parity.PATHS[request.param][1]):
        yield request.param


@pytest.fixture
def flash_attn(path):
    return parity.PATHS[path][0]


def test_a_dense_file_with_a_map_alone_runs_like_the_export(files, tmp_path):
    """The file has Q and K of the followers, but they are not loaded."""
    dense, shared, _ = files
    marked = small_gguf.with_metadata(
        dense, tmp_path / "marked.gguf", **{SOURCE_LAYERS_ARGUMENT: raw_array_i32(SOURCE_LAYERS)}
    )
    logits = []
    for path in (marked, shared):
        with Model(parity.lib(), path) as model, Context(model, **F32_CACHE) as context:
            assert model.source_layers() == SOURCE_LAYERS
            logits.append(context.decode(tokens(20)))
    assert np.array_equal(*logits)


def test_fused_qkv_runs_like_its_parts(built, tmp_path):
    """The same rows as one fused tensor and as three: the dense file with spans set at run time, and the export."""
    dense = small_gguf.write_dense(tmp_path / "fused.gguf", fused=True, bias=True)
    logits = []
    for path, share in ((dense, SOURCE_LAYERS), (export(dense, tmp_path / "shared.gguf"), None)):
        with Model(parity.lib(), path, share) as model, Context(model, False, **F32_CACHE) as context:
            logits.append(context.decode(tokens(20)))
    assert nmse(logits[0], logits[1]) < 1e-10


def test_set_checks_the_map(files):
    dense, shared, _ = files
    with Model(parity.lib(), dense) as model:
        for bad in (SOURCE_LAYERS[:-1], (0, 2, *range(2, 12)), (0, 0, 1, *range(3, 12))):
            with pytest.raises(RuntimeProblem, match=SOURCE_LAYERS_KEY):
                model.share(bad)
        assert model.source_layers() == tuple(range(12))
        model.share(SOURCE_LAYERS)
        assert model.source_layers() == SOURCE_LAYERS
    with Model(parity.lib(), shared) as model, pytest.raises(RuntimeProblem, match="layer 7 cannot compute its own"):
        model.share(tuple(range(12)))


def test_the_map_is_fixed_while_a_context_exists(files):
    """Its graphs and its KV cache were made from the map; a follower that became a source would have no K cache."""
    with Model(parity.lib(), files[0]) as model:
        model.share(SOURCE_LAYERS)
        with Context(model, **F32_CACHE) as context:
            expected = context.decode(tokens(5))
            for source_layers in (tuple(range(12)), (0, 0, *range(2, 12))):
                with pytest.raises(RuntimeProblem, match="a context of the model exists"):
                    model.share(source_layers)
            assert model.source_layers() == SOURCE_LAYERS
            context.clear()
            assert np.array_equal(context.decode(tokens(5)), expected)
        model.share(tuple(range(12)))
        assert model.source_layers() == tuple(range(12))


def test_libllama_needs_no_symbol_of_the_cpu_backend(built):
    """With GGML_BACKEND_DL that is a module, which llama.cpp loads at run time and cannot link to."""

    def symbols(library, kind):
        command = ["nm", "-D", f"--{kind}", built.bin / library]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {line.split()[-1].split("@")[0] for line in out.splitlines()}

    of_cpu = symbols("libggml-cpu.so", "defined-only") - symbols("libggml-base.so", "defined-only")
    assert len(of_cpu) > 20 and not symbols("libllama.so", "undefined-only") & of_cpu


def test_only_sources_compute_query_and_key_and_keep_weights(files, built, path, flash_attn):
    """Read from the names of the nodes in the running graph."""
    get_name = ctypes.CDLL(str(built.bin / "libggml-base.so")).ggml_get_name
    get_name.argtypes, get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    seen = set()

    @parity.lib().ggml_backend_sched_eval_callback
    def look(tensor, ask, data):
        seen.add(get_name(tensor).decode())
        return False

    with Model(parity.lib(), files[1]) as model, Context(model, flash_attn, cb_eval=look, **F32_CACHE) as context:
        context.decode(tokens(4))
    sources = {layer for layer, source in enumerate(SOURCE_LAYERS) if layer == source}

    def layers(role):
        return {int(name.rsplit("-", 1)[1]) for name in seen if re.fullmatch(rf"{role}-\d+", name)}

    assert layers("Qcur") == layers("Kcur") == sources
    # weights are in memory where followers read them; the kernel and flash attention keep them in registers elsewhere
    weights = {"plain": sources, "reuse": {6}, "hybrid": {6}, "recompute": set()}
    assert layers("kq") <= layers("kq_soft_max") == weights[path]
    assert layers("Vcur") == layers("l_out") == set(range(12))


# ---------------------------------------------------------------- state, K-shift, sequences


def test_state_goes_on_where_it_was(files, flash_attn):
    with Model(parity.lib(), files[1]) as model:
        with Context(model, flash_attn, **F32_CACHE) as context:
            context.decode(tokens(30))
            state = context.state()
            expected = context.decode(tokens(5, 30))
        with Context(model, flash_attn, **F32_CACHE) as context:
            assert context.restore(state)
            assert context.state() == state
            assert np.array_equal(context.decode(tokens(5, 30)), expected)


def test_a_state_fits_where_v_lies_the_same_way(files):
    """With flash attention off, V is transposed. How followers get their weights makes no difference."""
    with Model(parity.lib(), files[1]) as model:
        states, logits = {}, {}
        for path, (flash_attn, variables) in parity.PATHS.items():
            with parity.environment(variables), Context(model, flash_attn, **F32_CACHE) as context:
                context.decode(tokens(30))
                states[path] = context.state()
                logits[path] = context.decode(tokens(5, 30))
        for path, (flash_attn, variables) in parity.PATHS.items():
            for other, state in states.items():
                with parity.environment(variables), Context(model, flash_attn, **F32_CACHE) as context:
                    assert context.restore(state) == ((other == "plain") == (path == "plain")), (path, other)
                    if other == path or "plain" not in (other, path):
                        assert nmse(context.decode(tokens(5, 30)), logits[path]) < 1e-4


def test_k_shift(files, flash_attn):
    """Rotary positions are relative, so a shift of all positions by 50 gives the same next logits."""
    logits = []
    for shift in (0, 50):
        with Model(parity.lib(), files[1]) as model, Context(model, flash_attn, **F32_CACHE) as context:
            context.decode(tokens(30))
            context.lib.llama_memory_seq_add(context.memory, 0, 0, -1, shift)
            logits.append(context.decode([Token(5, 30 + shift)]))
    assert nmse(*logits) < (1e-4 if flash_attn else 1e-8)


@pytest.mark.parametrize("unified", [False, True])
def test_sequence_copy_and_remove(files, unified, flash_attn):
    """With one stream per sequence, a copy copies the tensors of K and V; followers have only V."""
    with (
        Model(parity.lib(), files[1]) as model,
        Context(model, flash_attn, n_seq_max=2, kv_unified=unified, **F32_CACHE) as context,
    ):
        context.decode(tokens(30))
        context.lib.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        first = context.decode(tokens(4, 30, sequence=0))
        second = context.decode(tokens(4, 30, sequence=1))
        assert nmse(second, first) < 1e-10
        context.lib.llama_memory_seq_rm(context.memory, 1, 30, -1)
        assert nmse(context.decode(tokens(4, 30, sequence=1)), first) < 1e-10


# ---------------------------------------------------------------- the patch


def test_the_patch_applies_to_the_pinned_source_only(tmp_path):
    tree = tmp_path / "llama.cpp"
    stock = stock_source()
    for name in pin().touched:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((stock / name).read_bytes())
    apply_patch(tree)  # checks the hashes of every touched file itself
    assert all((tree / "src" / path.name).is_file() for path in (patch_dir() / "src").iterdir())
    with pytest.raises(RuntimeProblem, match="not the pinned llama.cpp"):
        apply_patch(tree)
    with pytest.raises(RuntimeProblem, match=r"hooks\.patch does not apply: .*patch failed"):
        apply_patch(tree, check_hashes=False)


def test_the_patch_is_thin():
    """The patch only adds calls, with one line of context, and PIN.toml lists every touched file."""
    lines = (patch_dir() / "hooks.patch").read_text().splitlines()
    assert {line.removeprefix("+++ b/") for line in lines if line.startswith("+++ ")} == set(pin().touched)
    added = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
    removed = [line for line in lines if line.startswith("-") and not line.startswith("---")]
    assert len(added) <= 100 and len(removed) <= 50


def test_the_saver_keeps_the_map(files, tmp_path):
    """llama_model_save_to_file writes a file that loads with the same map."""
    saved = tmp_path / "saved.gguf"
    with Model(parity.lib(), files[1]) as model:
        parity.lib().llama_model_save_to_file(model.handle, str(saved).encode())
    assert read_header(saved).value(SOURCE_LAYERS_KEY) == list(SOURCE_LAYERS)
    with Model(parity.lib(), saved) as model:
        assert model.source_layers() == SOURCE_LAYERS


def test_quantize_and_split_keep_the_map(files, built, tmp_path):
    def tool(name, *arguments):
        subprocess.run([built.bin / name, *map(str, arguments)], check=True, capture_output=True)

    quantised, merged = tmp_path / "q8_0.gguf", tmp_path / "merged.gguf"
    tool("llama-quantize", files[1], quantised, "q8_0")
    tool("llama-gguf-split", "--split", "--split-max-tensors", 60, files[1], tmp_path / "part")
    parts = sorted(tmp_path.glob("part-*"))
    tool("llama-gguf-split", "--merge", parts[0], merged)
    assert len(parts) == 2
    for path in (quantised, parts[0], merged):
        with Model(parity.lib(), path) as model, Context(model, **F32_CACHE) as context:
            assert model.source_layers() == SOURCE_LAYERS
            assert np.isfinite(context.decode(tokens(5))).all()


def test_tools_keep_a_map_of_groups(files, built, tmp_path):
    """Saving, quantising and splitting keep the map and what is cut; a map that is tried out cannot be saved."""
    dense, *_ = files
    groups = export(dense, tmp_path / "groups.gguf", "6.0:7.1+8.0", drop="9,10.1")
    expected = read_facts(read_header(groups)).attention
    saved, quantised, merged = (tmp_path / f"{name}.gguf" for name in ("saved", "quantised", "merged"))
    with Model(parity.lib(), groups) as model:
        parity.lib().llama_model_save_to_file(model.handle, str(saved).encode())
    for command in (
        ("llama-quantize", groups, quantised, "q8_0"),
        ("llama-gguf-split", "--split", "--split-max-tensors", 60, groups, tmp_path / "part"),
        ("llama-gguf-split", "--merge", tmp_path / "part-00001-of-00002.gguf", merged),
    ):
        subprocess.run([built.bin / command[0], *map(str, command[1:])], check=True, capture_output=True)
    for path in (saved, quantised, merged):
        assert read_facts(read_header(path)).attention == expected
        with Model(parity.lib(), path) as model, Context(model, **F32_CACHE) as context:
            assert model.source_layers()[6:11] == (6, -1, -1, -1, -1)
            assert np.isfinite(context.decode(tokens(5))).all()


def test_heads_are_set_and_read_back(files):
    dense, shared, _ = files
    attention = parse_map("6.0:7.1", "9", read_facts(read_header(dense)).attention, "first", [False] * 12)
    with Model(parity.lib(), dense) as model:
        model.share_heads(attention.flat())
        lib = SharedAttention(parity.lib()._lib)
        found = [lib.source_head(model.handle, layer, head) for layer in range(12) for head in range(4)]
        assert tuple(found) == attention.flat()
        assert lib.source_head(model.handle, 12, 0) == lib.source_head(model.handle, 0, 4) == -1
        with pytest.raises(RuntimeProblem, match="has 47 entries"):
            model.share_heads(attention.flat()[:-1])
        model.share(tuple(range(12)))
        assert model.source_layers() == tuple(range(12))
    with Model(parity.lib(), shared) as model, pytest.raises(RuntimeProblem, match="layer 7 cannot compute its own"):
        model.share_heads(attention.flat())


def test_llama_cpp_python_runs_it(demo_dense, tmp_path):
    """The high-level API of llama-cpp-python gives the same logits, and text."""
    path = export(demo_dense, tmp_path / "shared.gguf")
    lib = parity.lib()
    llama = importlib.import_module("llama_cpp").Llama(
        str(path), n_ctx=512, logits_all=True, n_threads=2, verbose=False
    )
    ids = llama.tokenize(b"import os\n\ndef ")
    llama.eval(ids)
    with Model(lib, path) as model, Context(model, False, n_ctx=512, n_batch=512) as context:
        ours = context.decode([Token(id, position) for position, id in enumerate(ids)])
    assert np.array_equal(llama.scores[: len(ids)], ours)
    answer = llama.create_completion("import os\n\ndef ", max_tokens=8, temperature=0)
    assert answer["usage"]["completion_tokens"] == 8
    llama.close()
