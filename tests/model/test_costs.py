"""The arithmetic of the savings, compared with numbers computed by hand, and models of a given shape."""

import pytest
from gguf import GGMLQuantizationType

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model import costs
from shareatt_export.model.facts import read_facts
from shareatt_export.model.synthetic import ModelShape, write_random
from tests.support import small_gguf

# 4 query heads of 16, 2 KV heads: Q 64 wide, K and V 32 wide. Layers 1 and 2 follow layer 0.
SHAPE = ModelShape(n_layer=3, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, n_vocab=32)
DENSE = SHAPE.facts().attention
SHARED = SHAPE.facts().of_layers((0, 0, 0))
Q8_0 = GGMLQuantizationType.Q8_0


def test_decode_reads_weights_cache_and_attention_weights():
    facts = SHAPE.facts()
    assert costs.decode_bytes(facts, DENSE, 1000, 10) == 1000 + 10 * (3 * (32 + 32) * 2)
    # each follower reads no K, and four attention weights of two bytes instead
    assert costs.decode_bytes(facts, SHARED, 1000, 10) == 1000 + 10 * ((3 * 32 + 32) * 2 + 2 * 4 * 2)
    # a row of 32 numbers in q8_0 is 34 bytes
    assert costs.decode_bytes(facts, DENSE, 0, 1, Q8_0, Q8_0) == 3 * 2 * 34


def test_prefill_computes_projections_scores_and_values():
    weights = costs.WeightSizes(n_bytes=0, n_elements=5000, n_elements_output=700)
    seen = (7 + 1) + (7 + 2) + (7 + 3)  # positions that the three tokens after 7 others attend to
    both_sides, values_alone = 2 * 4 * (16 + 16), 2 * 4 * 16
    linear = 2 * 3 * 5000 + 2 * 700
    facts = SHAPE.facts()
    assert costs.prefill_flops(facts, DENSE, weights, 3, 7) == linear + 3 * both_sides * seen
    assert costs.prefill_flops(facts, SHARED, weights, 3, 7) == linear + (both_sides + 2 * values_alone) * seen


def test_saved_parameters_and_the_share_of_a_follower():
    facts = SHAPE.facts()
    assert costs.saved_parameters(facts, SHARED) == 2 * 64 * (64 + 32)
    assert costs.saved_parameters(facts, DENSE) == 0
    assert costs.follower_decode_share(facts, 1) == (32 * 2 + 4 * 2) / (64 * 2)
    assert costs.follower_prefill_share(facts) == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_a_shape(tmp_path, tied):
    shape = ModelShape(n_layer=3, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, n_vocab=32, tied=tied)
    for name in ("a.gguf", "b.gguf"):
        write_random(tmp_path / name, shape)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    header = read_header(tmp_path / "a.gguf")
    assert read_facts(header) == shape.facts()
    matrices = {name: info.shape for name, info in header.tensors.items() if len(info.shape) == 2}
    assert matrices == {f"{name}.weight": (columns, rows) for name, rows, columns in shape.matrices()}
    attention, ffn = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96
    assert shape.parameters == 3 * (attention + ffn) + 32 * 64 * (1 if tied else 2)
    weights = costs.read_weights(header)  # a token reads only one row of an untied embedding
    assert weights.n_elements_output == 32 * 64
    assert weights.n_elements == 3 * (attention + ffn) + 7 * 64
    assert weights.n_bytes == (3 * (attention + ffn) + 32 * 64) // 32 * 34 + 7 * 64 * 4


def test_tied_weights_of_another_writer(tmp_path):
    header = read_header(small_gguf.write_dense(tmp_path / "small.gguf"))
    assert costs.read_weights(header).n_bytes == sum(info.n_bytes for info in header.tensors.values())
