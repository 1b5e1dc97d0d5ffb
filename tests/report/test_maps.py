"""Maps as cells: what each group does, what that saves, and what is known of it alone."""

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.report.maps import Alone, Shape, add_alone, layers, read_map, summary
from shareatt_export.report.values import Record

# three layers of four query heads and two KV groups
OWN = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
MIXED = [[0, 1, 2, 3], [2, 3, 6, 7], [-1, -1, 10, 11]]
SHAPE = Shape((2, 2, 2), 64, 32)


def of(data, shape=SHAPE):
    return read_map(Record(data, "x.json"), shape)


def labels(found):
    return [[cell.label for cell in layer.cells] for layer in layers(found, Alone())]


def words(found, alone, layer, group):
    return list(layers(found, alone))[layer].cells[group].words


def test_groups():
    found = of({"source_heads": MIXED})
    assert labels(found) == [["own", "own"], ["\u2190 0", "own"], ["\u00d7", "own"]]
    assert summary(found) == "4 KV groups with attention weights of their own, 1 following, 1 dropped"
    assert words(found, Alone(), 0, 0) == (
        "Layer 0, group 0 computes its attention weights. It takes 192 bytes of KV cache per token."
    )
    assert words(found, Alone(), 1, 0) == (
        "Layer 1, group 0 follows query heads 2 3 of layer 0. That saves 128 bytes of KV cache per token, its K."
    )
    assert words(found, Alone(), 2, 0) == (
        "Layer 2, group 0 is dropped. That saves 192 bytes of KV cache per token, its K and V."
    )


def test_an_older_file_shows_query_heads_or_layers():
    heads = of({"source_heads": MIXED}, None)
    assert labels(heads)[1] == ["\u2190 0", "\u2190 0", "own", "own"] and heads.unit == "query head"
    whole = of({"source_layers": [0, 0, 2]}, None)
    assert labels(whole) == [["own"], ["\u2190 0"], ["own"]] and whole.unit == "layer"
    assert words(whole, Alone(), 1, 0) == "Layer 1 follows layer 0."
    assert of({}, None) is None


def test_what_is_known_of_a_group_alone():
    alone = Alone()
    add_alone(alone, Record({
        "kl_of_single_drops": [{"layer": 1, "groups": [0], "kl": 0.5}, {"layer": 2, "groups": [0, 1], "kl": 0.75}],
        "kl_of_single_followers": {"1": 0.25},
        "pairs": [{"source": 0, "follower": 1, "error": 0.125, "drop_error": 0.0625}],
    }, "x.json"))  # fmt: skip
    found = of({"source_heads": MIXED})
    assert words(found, alone, 1, 0).endswith(
        "This group dropped alone: KL 0.500. The whole layer following alone: KL 0.250. "
        "Error of the layer's attention output with the weights of layer 0: 0.125. "
        "Error without attention in the layer: 0.0625."
    )
    assert "alone" not in words(found, alone, 0, 0)
    assert "This group" not in words(found, alone, 1, 1)
    assert words(found, alone, 2, 1).endswith("The whole layer dropped alone: KL 0.750.")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"source_heads": OWN[:2]}, "source_heads: has 2 layers, but the model has 3"),
        ({"source_heads": [OWN[0], [8, 9, 6, 7], OWN[2]]}, "source_heads: map: group 1.0: source 8 is not a head"),
        ({"source_heads": [OWN[0], [0, 1, 2], OWN[2]]}, "source_heads: map: layer 1: has no groups of heads"),
        ({"source_layers": [0, 2, 2]}, "source_layers: map: group 1.0: source 2 is not a head of an earlier layer"),
    ],
)
def test_what_is_no_map(data, expected):
    with pytest.raises(BadInput) as error:
        of(data)
    assert str(error.value).startswith(f"x.json: {expected}")


def test_real_maps(data):
    """The groups of the map that a search found are those that it says in words."""
    report = data["groups"]
    shape = Shape(tuple(report["shape"]["n_head_kv"]), report["shape"]["head_dim_k"], report["shape"]["head_dim_v"])
    found = read_map(Record(report["found"], "x.json"), shape)
    cells = [cell for layer in layers(found, Alone()) for cell in layer.cells]
    saved = sum({"own": 0, "follow": 1, "drop": 2}[cell.action] * 2 * shape.head_dim_k for cell in cells)
    assert saved == report["dense"]["kv_bytes_per_token"] - report["found"]["kv_bytes_per_token"] > 0
