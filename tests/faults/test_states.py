"""States of other kinds of models, and broken states: refused, and the context continues unchanged."""

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.llamacpp.engine import Context, Model
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.small_gguf import F32_CACHE, tokens

pytestmark = pytest.mark.fault("K")

F16_K = F32_CACHE | {"type_k": 1}
F16_V = F32_CACHE | {"type_v": 1}


@pytest.fixture(scope="module")
def models(built, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("states")
    dense = small_gguf.write_dense(folder / "dense.gguf")
    shared, other = export(dense, folder / "shared.gguf"), export(dense, folder / "other.gguf", "2-5")
    more = export(dense, folder / "more.gguf", "5-9")
    deeper = export(small_gguf.write_dense(folder / "deep.gguf", n_layer=14), folder / "deeper.gguf")
    return {"dense": dense, "shared": shared, "other": other, "more": more, "deeper": deeper}


# the model and context of a state, and those that it is restored to
OTHERS = {
    "dense to SA": (("dense", None, F32_CACHE), ("shared", None, F32_CACHE)),
    "SA to dense": (("shared", None, F32_CACHE), ("dense", None, F32_CACHE)),
    "dense to SA, flash attention on": (("dense", True, F32_CACHE), ("shared", True, F32_CACHE)),
    "SA to dense, flash attention on": (("shared", True, F32_CACHE), ("dense", True, F32_CACHE)),
    "dense to SA, flash attention off": (("dense", False, F32_CACHE), ("shared", False, F32_CACHE)),
    "SA to dense, flash attention off": (("shared", False, F32_CACHE), ("dense", False, F32_CACHE)),
    "as many followers elsewhere": (("other", None, F32_CACHE), ("shared", None, F32_CACHE)),
    "one follower more": (("more", None, F32_CACHE), ("shared", None, F32_CACHE)),
    "one follower less": (("shared", None, F32_CACHE), ("more", None, F32_CACHE)),
    "more layers": (("deeper", None, F32_CACHE), ("shared", None, F32_CACHE)),
    "fewer layers": (("shared", None, F32_CACHE), ("deeper", None, F32_CACHE)),
    "K of another type": (("shared", None, F16_K), ("shared", None, F32_CACHE)),
    "V of another type": (("shared", True, F16_V), ("shared", True, F32_CACHE)),
    "V transposed": (("shared", False, F32_CACHE), ("shared", True, F32_CACHE)),
    "V not transposed": (("shared", True, F32_CACHE), ("shared", False, F32_CACHE)),
}


def sequence_of(models, model, flash_attn, cache) -> bytes:
    with Model(parity.lib(), models[model]) as loaded, Context(loaded, flash_attn, **cache) as context:
        context.decode(tokens(30))
        return context.sequence_state()


def goes_on(models, target, bad: bytes | Path) -> None:
    """Sequence 0 holds tokens.

    A bad state for sequence 1 must be refused, and must not change the next logits of sequence 0.
    """
    model, flash_attn, cache = target
    logits = []
    with Model(parity.lib(), models[model]) as loaded:
        for state in (None, bad):
            with Context(loaded, flash_attn, n_seq_max=2, **cache) as context:
                context.decode(tokens(20))
                assert state is None or not restored(context, state)
                logits.append(context.decode(tokens(5, 20)))
    assert np.array_equal(*logits)


def restored(context: Context, state: bytes | Path) -> bool:
    if isinstance(state, bytes):
        return context.restore_sequence(state, 1)
    room, n = (ctypes.c_int32 * 64)(), ctypes.c_size_t()
    return bool(context.lib.llama_state_seq_load_file(context.handle, bytes(state), 1, room, 64, ctypes.byref(n)))


@pytest.mark.parametrize("name", OTHERS)
def test_of_another_kind(models, name):
    source, target = OTHERS[name]
    goes_on(models, target, sequence_of(models, *source))


@pytest.fixture(scope="module")
def state(models) -> bytes:
    return sequence_of(models, "shared", None, F32_CACHE)


@pytest.mark.parametrize("length", [1, 4, 7, 8, 12, 16, 20, 24, 60, 200, 1000, 5000, -1000, -5, -1])
def test_cut(models, state, length):
    goes_on(models, ("shared", None, F32_CACHE), state[:length])


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16])
def test_overwritten(models, state, at):
    """Counts and sizes in the state are overwritten with 0xff."""
    goes_on(models, ("shared", None, F32_CACHE), state[:at] + b"\xff" * 4 + state[at + 4 :])


def test_a_follower_given_a_k(models, state):
    """The type of a layer without K, -1, is changed to that of F32 rows."""
    marker = struct.pack("<iQ", -1, 0)
    assert state.count(marker) == 3
    goes_on(models, ("shared", None, F32_CACHE), state.replace(marker, struct.pack("<iQ", 0, 128), 1))


def file_of(models, model: str, path: Path) -> Path:
    """Save a sequence in a file, as llama-server does with its slots."""
    with Model(parity.lib(), models[model]) as loaded, Context(loaded, **F32_CACHE) as context:
        context.decode(tokens(30))
        ids = (ctypes.c_int32 * 30)(*(token.id for token in tokens(30)))
        assert context.lib.llama_state_seq_save_file(context.handle, bytes(path), 0, ids, 30)
        assert restored(context, path)
    return path


@pytest.mark.parametrize(
    ("of", "to"), [("dense", "shared"), ("shared", "dense"), ("shared", "other"), ("more", "shared")]
)
def test_files_of_another_kind(models, tmp_path, of, to):
    goes_on(models, (to, None, F32_CACHE), file_of(models, of, tmp_path / "slot"))


BROKEN_FILES = {
    "empty": lambda whole: b"",
    "a word": lambda whole: whole[:4],
    "no tokens": lambda whole: whole[:12],
    "half of the tokens": lambda whole: whole[:70],
    "no state": lambda whole: whole[:132],
    "half of it": lambda whole: whole[: len(whole) // 2],
    "without its last byte": lambda whole: whole[:-1],
    "a model": lambda whole: b"GGUF" + whole[4:],
    "another version": lambda whole: whole[:4] + b"\xff" * 4 + whole[8:],
    "more tokens than there is room for": lambda whole: whole[:8] + b"\xff" * 4 + whole[12:],
    "a header of 0xff behind the tokens": lambda whole: whole[:132] + b"\xff" * 16 + whole[148:],
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_files(models, tmp_path, name):
    path = file_of(models, "shared", tmp_path / "slot")
    path.write_bytes(BROKEN_FILES[name](path.read_bytes()))
    goes_on(models, ("shared", None, F32_CACHE), path)


def test_a_file_that_is_not_there(models, tmp_path):
    goes_on(models, ("shared", None, F32_CACHE), tmp_path / "none")


def test_whole_states(models):
    """The state of all sequences, as a file holds it; a refused one leaves nothing behind."""
    states = {}
    for name in ("dense", "shared", "other"):
        with Model(parity.lib(), models[name]) as model, Context(model, **F32_CACHE) as context:
            context.decode(tokens(30))
            states[name] = context.state()
    assert len(states["shared"]) < len(states["dense"])
    for name, other in (("dense", "shared"), ("shared", "dense"), ("shared", "other")):
        with Model(parity.lib(), models[name]) as model:
            with Context(model, **F32_CACHE) as context:
                assert not context.restore(states[other])
                after = context.decode(tokens(5))
            with Context(model, **F32_CACHE) as context:
                assert np.array_equal(context.decode(tokens(5)), after)
