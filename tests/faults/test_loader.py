"""Bad SA files in llama.cpp: the load fails with one log line that names the key and the layer, and never crashes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.errors import BadInput, RuntimeProblem, Unsupported
from shareatt_export.formats.shards import read_model
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from shareatt_export.model.facts import read_facts
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.faults import bad_group_files
from tests.support.faults.bad_shared_files import BAD_FILES, shared_mutants
from tests.support.faults.load_child import OUTCOMES, LoadChild
from tests.support.small_gguf import F32_CACHE, tokens
from tests.support.source_layers import SOURCE_LAYERS, SOURCE_LAYERS_KEY

pytestmark = pytest.mark.fault("J")

DENSE = tuple(range(small_gguf.N_LAYER))
N_MUTANTS = 1000


@pytest.fixture(scope="module")
def shared(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    return export(small_gguf.write_dense(folder / "dense.gguf"), folder / "shared.gguf")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(shared, tmp_path, name):
    make, message = BAD_FILES[name]
    make(shared, tmp_path / "bad.gguf")
    with pytest.raises(BadInput) as error:
        Model(parity.lib(), tmp_path / "bad.gguf")
    assert str(tmp_path / "bad.gguf") in str(error.value) and message in str(error.value)


@pytest.fixture(scope="module")
def groups(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    dense = small_gguf.write_dense(folder / "dense.gguf")
    return export(dense, folder / "shared.gguf", bad_group_files.SPANS, drop=bad_group_files.DROP)


@pytest.mark.parametrize("name", bad_group_files.BAD_FILES)
def test_bad_files_with_groups(groups, tmp_path, name):
    make, message = bad_group_files.BAD_FILES[name]
    make(groups, tmp_path / "bad.gguf")
    with pytest.raises(BadInput) as error:
        Model(parity.lib(), tmp_path / "bad.gguf")
    assert str(tmp_path / "bad.gguf") in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "name", [name for name in bad_group_files.BAD_FILES if "rows" not in name and "no " not in name]
)
def test_the_reader_refuses_the_same_maps(groups, tmp_path, name):
    bad_group_files.BAD_FILES[name][0](groups, tmp_path / "bad.gguf")
    with pytest.raises((BadInput, Unsupported), match="bad.gguf"):
        read_facts(read_model(tmp_path / "bad.gguf"))


def test_the_good_file_of_these_loads(groups):
    with Model(parity.lib(), groups) as model, Context(model, **F32_CACHE) as context:
        assert np.isfinite(context.decode(tokens(5))).all()


@pytest.mark.fault("C")
def test_mutants(built, tmp_path, record_property):
    """llama.cpp refuses or runs each mutant in a child process. It may crash only if it crashes without the patch.

    scripts/fuzz_loader.py repeats this with sanitizers.
    """
    path, seen = tmp_path / "mutant.gguf", Counter[str]()
    unpatched = runtime.require_built(patched=False)
    with LoadChild(built.python, built.bin) as patched, LoadChild(built.python, unpatched.bin) as other:
        for data in shared_mutants(tmp_path, seed=1, count=N_MUTANTS):
            path.write_bytes(data)
            of = patched.try_load(path)
            seen[of.outcome] += 1
            assert of.outcome in OUTCOMES.values() or other.try_load(path).status == of.status, of.said
            assert of.status != 1 or str(path) in of.said
    assert min(seen["decoded"], seen["refused"]) > N_MUTANTS / 20, seen
    record_property("cases", N_MUTANTS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (SOURCE_LAYERS[:-1], "has 11 layers"),
        ((*SOURCE_LAYERS, 12), "has 13 layers"),
        ((), "has 0 layers"),
        ((0, 2, *range(2, 12)), "layer 1: source 2"),
        ((0, -1, *range(2, 12)), "layer 1: source -1"),
        ((0, 0, 1, *range(3, 12)), "layer 2: source 1"),
    ],
)
def test_maps_that_are_set(shared, bad, message):
    """A bad map that is set on a loaded dense model is refused, and the model runs as before."""
    with Model(parity.lib(), shared.with_name("dense.gguf")) as model:
        with pytest.raises(RuntimeProblem, match=SOURCE_LAYERS_KEY) as error:
            model.share(bad)
        assert message in str(error.value) and model.source_layers() == DENSE
        with Context(model, **F32_CACHE) as context:
            assert np.isfinite(context.decode(tokens(5))).all()


def test_a_follower_has_no_query_to_compute_with_again(shared):
    with Model(parity.lib(), shared) as model, pytest.raises(RuntimeProblem, match="layer 7 cannot compute its own"):
        model.share(DENSE)
