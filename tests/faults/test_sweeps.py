"""Every truncation, and thousands of mutations: each file is refused with its name, or exported to a correct file.

scripts/fuzz.py runs more mutations.
"""

import numpy as np
import pytest

from shareatt_export.errors import BadInput
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf
from tests.support.faults import json_mutants
from tests.support.faults.checkpoint_folders import checkpoint
from tests.support.faults.gguf_bytes import ARCH, gguf_file, tensor
from tests.support.faults.gguf_mutants import gguf_mutants
from tests.support.faults.mutant_outcomes import checkpoint_outcome, gguf_outcome

N_MUTANTS = 2000
N_CHECKPOINTS = 2000


@pytest.mark.fault("B")
def test_every_prefix_of_a_gguf(tmp_path, record_property):
    path = tmp_path / "cut.gguf"
    whole = gguf_file(tensor("a", (8,)), tensor("b", (4, 2), offset=32), kvs=[ARCH], data=bytes(64))
    path.write_bytes(whole)
    assert list(read_header(path).tensors) == ["a", "b"]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=str(path)):
            read_header(path)
    record_property("cases", len(whole))


@pytest.mark.fault("B")
def test_cuts_of_a_model(tmp_path, record_property):
    """Cut the model at every byte before the tensors, and at 200 random places; read_header must refuse it."""
    path, whole = tmp_path / "cut.gguf", small_gguf.write_dense(tmp_path / "dense.gguf", n_layer=2).read_bytes()
    n_header = read_header(tmp_path / "dense.gguf").data_offset
    lengths = [*range(n_header), *np.random.default_rng(0).integers(n_header, len(whole), 200).tolist()]
    path.write_bytes(whole)
    with path.open("r+b") as file:
        for length in sorted(lengths, reverse=True):
            file.truncate(length)
            with pytest.raises(BadInput, match=str(path)):
                read_header(path)
    record_property("cases", len(lengths))


@pytest.mark.fault("C")
def test_mutants(tmp_path, record_property):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", q8_0=True, n_layer=3)
    seen = {"refused": 0, "exported": 0}
    path, out = tmp_path / "mutant.gguf", tmp_path / "out.gguf"
    for data in gguf_mutants(dense, seed=1, count=N_MUTANTS):
        path.write_bytes(data)
        seen[gguf_outcome(path, out)] += 1
    assert min(seen.values()) > N_MUTANTS / 20, seen  # otherwise this would test only one of the two
    assert {file.name for file in tmp_path.iterdir()} <= {"dense.gguf", "mutant.gguf", "out.gguf"}
    record_property("cases", N_MUTANTS)


@pytest.mark.fault("C")
def test_mutants_of_a_checkpoint(tmp_path, record_property):
    folder, seen = checkpoint(tmp_path / "model", shards=2), {"refused": 0, "taken": 0}
    for path in json_mutants.mutants(folder, seed=1, count=N_CHECKPOINTS):
        seen[checkpoint_outcome(path)] += 1
    assert min(seen.values()) > N_CHECKPOINTS / 20, seen
    record_property("cases", N_CHECKPOINTS)
