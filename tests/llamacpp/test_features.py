"""Every way to use a context, on every path of the attention weights, gives what the plain path gives.

tests/support/features.py holds the ways; docs/features.md is made from it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from shareatt_export.llamacpp import runtime
from tests.support import features
from tests.support.features import FEATURES
from tests.support.ways import PATHS, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FEATURES)
def test_a_way_to_use_a_context(folder, name, path):
    if path == "dense":  # flash attention rounds K and V
        assert features.error(name, path, folder) < 1e-4
    else:
        assert features.error(name, path, folder) <= features.tolerance(name, path, folder)


# the first token of a decoder attends to itself alone, with or without sharing
@pytest.mark.parametrize("name", [name for name in FEATURES if name != "embeddings, first token (CLS)"])
def test_sharing_matters_for_the_result(folder, name):
    """Otherwise the test above would not notice a wrong attention."""
    dense, shared = (features.expected(name, shares, folder) for shares in (False, True))
    assert features.parity.nmse(dense, shared) > 100 * features.EXACT


def test_training_of_single_groups_is_refused(folder):
    """Its operations have no backward pass; llama.cpp's training ends the process in any case."""
    file = features.files("KV groups", folder)[True]
    command = [sys.executable, "-m", "tests.support.training_child", file, "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode != 0 and "training works with whole layers only" in done.stderr


def test_the_documentation_has_a_row_for_each_way():
    text = (ROOT / "docs" / "features.md").read_text()
    assert features.PREFACE in text and all(f"| {name} |" in text for name in FEATURES)
