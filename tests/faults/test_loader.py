"""Bad source maps in llama.cpp: no model, and one line in the log that names the key and the layer."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from shareatt_export.encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from shareatt_export.engine import Context, Model
from shareatt_export.errors import BadInput, RuntimeProblem
from shareatt_export.header import RawValue

from .. import parity, small
from ..small import F32_CACHE, tokens
from ..test_export import export
from ..test_runtime import KEY, PARAM, SHARED
from .build import with_tensors

pytestmark = pytest.mark.fault("J")

DENSE = tuple(range(small.N_LAYER))
ARRAY_OF_I32 = "must be an array of i32"
F32 = GGMLQuantizationType.F32


def array_of(type: GGUFValueType, code: str) -> RawValue:
    return RawValue(GGUFValueType.ARRAY, struct.pack(f"<IQ12{code}", type, 12, *SHARED))


def scalar(type: GGUFValueType, code: str, number: float) -> RawValue:
    return RawValue(type, struct.pack(f"<{code}", number))


def changed(layer: int, source: int) -> RawValue:
    return raw_array_i32([*DENSE[:layer], source, *DENSE[layer + 1 :]])


MAPS: dict[str, tuple[RawValue, str]] = {
    "a scalar": (raw_u32(1), ARRAY_OF_I32),
    "a text": (raw_string("6-9"), ARRAY_OF_I32),
    "texts": (raw_string_array(["0"] * 12), ARRAY_OF_I32),
    "u32": (array_of(GGUFValueType.UINT32, "I"), ARRAY_OF_I32),
    "i8": (array_of(GGUFValueType.INT8, "b"), ARRAY_OF_I32),
    "u8": (array_of(GGUFValueType.UINT8, "B"), ARRAY_OF_I32),
    "i16": (array_of(GGUFValueType.INT16, "h"), ARRAY_OF_I32),
    "i64": (array_of(GGUFValueType.INT64, "q"), ARRAY_OF_I32),
    "u64": (array_of(GGUFValueType.UINT64, "Q"), ARRAY_OF_I32),
    "f32": (array_of(GGUFValueType.FLOAT32, "f"), ARRAY_OF_I32),
    "truths": (array_of(GGUFValueType.BOOL, "?"), ARRAY_OF_I32),
    "too short": (raw_array_i32(SHARED[:-1]), "has 11 layers, the model has 12"),
    "too long": (raw_array_i32([*SHARED, 12]), "has 13 layers, the model has 12"),
    "513 layers": (raw_array_i32(range(513)), "has 513 layers, the model has 12"),
    "a million layers": (raw_array_i32([0] * 1_000_000), "has 1000000 layers, the model has 12"),
    "empty": (raw_array_i32([]), "has 0 layers, the model has 12"),
    "-1 first": (changed(0, -1), "layer 0: source -1 is not a layer at or before it"),
    "-1": (changed(1, -1), "layer 1: source -1 is not a layer at or before it"),
    "the least number": (changed(5, -(1 << 31)), "layer 5: source -2147483648 is not a layer"),
    "the greatest number": (changed(5, (1 << 31) - 1), "layer 5: source 2147483647 is not a layer"),
    "ahead": (changed(1, 2), "layer 1: source 2 is not a layer at or before it"),
    "behind the last": (changed(11, 12), "layer 11: source 12 is not a layer"),
    "a follower": (raw_array_i32([0, 0, 1, *range(3, 12)]), "layer 2: source 1 does not compute its own"),
    "a chain": (raw_array_i32([0, 0, 1, 2, *range(4, 12)]), "layer 2: source 1 does not compute its own"),
}


@pytest.fixture(scope="module")
def shared(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    return export(small.write_dense(folder / "dense.gguf"), folder / "shared.gguf")


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        Model(parity.lib(), path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", MAPS)
def test_maps(shared, tmp_path, name):
    value, message = MAPS[name]
    error = refusal(small.with_metadata(shared, tmp_path / "bad.gguf", **{PARAM: value}))
    assert KEY in error and message in error


VERSIONS = {
    "2": (raw_u32(2), "is 2, this runtime knows up to 1"),
    "the greatest": (raw_u32((1 << 32) - 1), "is 4294967295, this runtime knows up to 1"),
    "a text": (raw_string("1"), "u32"),
    "i32": (scalar(GGUFValueType.INT32, "i", 1), "u32"),
    "f32": (scalar(GGUFValueType.FLOAT32, "f", 1.0), "u32"),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_versions(shared, tmp_path, name):
    value, message = VERSIONS[name]
    error = refusal(small.with_metadata(shared, tmp_path / "bad.gguf", shareatt__format_version=value))
    assert "shareatt.format_version: " in error and message in error


@pytest.mark.parametrize("name", ["blk.6.attn_q.weight", "blk.6.attn_k.weight", "blk.8.attn_v.weight"])
def test_a_tensor_is_missing(shared, tmp_path, name):
    assert name in refusal(with_tensors(shared, tmp_path / "bad.gguf", [name]))


def test_a_layer_that_has_lost_its_query_is_no_source(shared, tmp_path):
    bad = small.with_metadata(shared, tmp_path / "bad.gguf", **{PARAM: raw_array_i32([*range(8), 7, 7, 10, 11])})
    assert "blk.7.attn_q.weight" in refusal(bad)


HEADS = {
    "query heads": {"llama__attention__head_count": raw_array_i32([4] * 8 + [2] + [4] * 3)},
    "KV heads": {"llama__attention__head_count_kv": raw_array_i32([2] * 7 + [4] + [2] * 4)},
}


@pytest.mark.parametrize("name", HEADS)
def test_other_heads_than_the_source(shared, tmp_path, name):
    assert KEY in refusal(small.with_metadata(shared, tmp_path / "bad.gguf", **HEADS[name]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (SHARED[:-1], "has 11 layers"),
        ((*SHARED, 12), "has 13 layers"),
        ((), "has 0 layers"),
        ((0, 2, *range(2, 12)), "layer 1: source 2"),
        ((0, -1, *range(2, 12)), "layer 1: source -1"),
        ((0, 0, 1, *range(3, 12)), "layer 2: source 1"),
    ],
)
def test_maps_that_are_set(shared, bad, message):
    """On a dense model, which goes on as it was."""
    with Model(parity.lib(), shared.with_name("dense.gguf")) as model:
        with pytest.raises(RuntimeProblem, match=KEY) as error:
            model.share(bad)
        assert message in str(error.value) and model.source_layers() == DENSE
        with Context(model, **F32_CACHE) as context:
            assert np.isfinite(context.decode(tokens(5))).all()


def test_a_follower_has_no_query_to_compute_with_again(shared):
    with Model(parity.lib(), shared) as model, pytest.raises(RuntimeProblem, match="layer 7 cannot compute its own"):
        model.share(DENSE)
