"""What a report says of how it came about."""

import json
import shlex
from datetime import datetime, timedelta

import pytest

import shareatt_export
from shareatt_export.formats.identity import own_blake3, tensors_blake3
from shareatt_export.formats.shards import read_model
from shareatt_export.llamacpp.pin import patch_id, pin
from shareatt_export.model.facts import read_facts
from tests.support import tiny_models

KINDS = ("analyze", "layers", "groups", "eval", "bench")


@pytest.mark.parametrize("kind", KINDS)
def test_each_report_says_how_to_repeat_it(data, demo_dense, kind):
    made = data[kind]["provenance"]
    assert made["tool"] == f"shareatt-export {shareatt_export.__version__}"
    assert (made["llama_cpp"], made["patch"]) == (pin().llama_cpp_commit, patch_id())
    words = shlex.split(made["command"])
    name = "search" if kind in ("layers", "groups") else kind
    assert words[:3] == ["shareatt-export", name, str(demo_dense)]
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    assert made["machine"]["cpus"] >= 1 and made["machine"]["processor"] and made["machine"]["system"]
    dense, *others = made["models"]
    assert dense == {"model": str(demo_dense), "tensors_blake3": tensors_blake3(read_model(demo_dense))}
    assert [other["model"].endswith("sa.gguf") for other in others] == [True] * (kind in ("eval", "bench"))


def test_an_sa_file_is_named_by_its_own_tensors(data, reports, demo_dense):
    dense, sa = data["eval"]["provenance"]["models"]
    header = read_model(reports["eval"].with_name("sa.gguf"))
    assert sa["tensors_blake3"] == own_blake3(header) != dense["tensors_blake3"] == tensors_blake3(header)


@pytest.mark.parametrize("kind", KINDS)
def test_each_report_has_the_shape_of_the_model(data, demo_dense, kind):
    facts = read_facts(read_model(demo_dense))
    assert data[kind]["shape"] == {
        "architecture": facts.arch,
        "n_head": list(facts.n_head),
        "n_head_kv": list(facts.n_head_kv),
        "head_dim_k": facts.head_dim_k,
        "head_dim_v": facts.head_dim_v,
    }


def test_a_folder_has_no_hash(run):
    text = ["--text", tiny_models.DEMO / "heldout.txt", "--ctx", 32, "--windows", 1]
    report = json.loads(run("analyze", tiny_models.DEMO, *text, "--reach", 1, "--json").stdout)
    assert report["provenance"]["models"] == [{"model": str(tiny_models.DEMO), "tensors_blake3": None}]
