"""Attention maps: what they say of groups, as text, in the order of a file; and what is refused."""

import pytest

from shareatt_export.errors import BadSpans
from shareatt_export.model.attention_map import (
    DROPPED,
    AttentionMap,
    Group,
    check,
    dense_map,
    dropped,
    following,
    of_flat,
    of_layers,
    without_layers,
)
from shareatt_export.model.map_text import (
    drop_text,
    in_words,
    map_options,
    map_text,
    parse_map,
    sharing_text,
    short_text,
)

DENSE = dense_map([6] * 5, [3] * 5)  # 2 query heads in each KV group


def parsed(spans: str | None = None, drop: str | None = None) -> AttentionMap:
    return parse_map(spans, drop, DENSE, "first", [False] * 5)


def test_actions_and_counts():
    found = parsed("1.0:2.1+3.1", "3.2,4")
    assert [found.action(group) for group in found.groups(3)] == ["own", "follow", "drop"]
    assert found.of(Group(3, 1)) == (6, 7) and found.of(Group(3, 2)) == (DROPPED, DROPPED)
    assert [(found.n_k(layer), found.n_v(layer)) for layer in range(5)] == [(3, 3), (3, 3), (2, 3), (1, 2), (0, 0)]
    assert found.touched == (2, 3, 4) and found.source_layers is None
    assert list(following(found)) == [(Group(2, 1), 1), (Group(3, 1), 1)]
    assert dropped(found) == [Group(3, 2), *found.groups(4)]


def test_layers_are_a_map_of_groups():
    found = of_layers(DENSE, (0, 1, 1, 1, 4))
    assert found.source_layers == (0, 1, 1, 1, 4) and map_text(found) == short_text(found) == "1-3"
    assert found == parsed("1-3") and found.in_file_order() == found
    assert DENSE.is_dense and DENSE.source_layers == (0, 1, 2, 3, 4) and map_text(DENSE) == "dense"


def test_the_order_of_a_file():
    """Group 0 of layer 2 is dropped, so 2.1 and 2.2 come first there, and 3.0 follows what was head 4 and is head 2."""
    found = parsed("2.2:3.0", "2.0")
    in_file = found.in_file_order()
    assert found.order(2) == (Group(2, 1), Group(2, 2), Group(2, 0))
    assert in_file.sources[2] == (12, 13, 14, 15, DROPPED, DROPPED)
    assert in_file.sources[3] == (18, 19, 20, 21, 14, 15)  # its own groups 1 and 2 come before the follower
    check(in_file)
    assert in_file.in_file_order() == in_file and of_flat(DENSE, in_file.flat()) == in_file


@pytest.mark.parametrize(
    ("spans", "drop"),
    [("1.0:2.1+3.0+3.2", None), (None, "0,2-3,4.1"), ("1.1:3.0,2.0:4.2", "1.0,3.1-2"), ("1.0:2.0+2.1+2.2", None)],
)
def test_text_is_read_back(spans, drop):
    found = parsed(spans, drop)
    assert parsed(sharing_text(found) or None, drop_text(found) or None) == found
    options = map_options(found, DENSE, [False] * 5)
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.keys() <= {"--spans", "--drop"} and parsed(given.get("--spans"), given.get("--drop")) == found


def test_a_map_by_heads_has_no_options():
    by_heads = DENSE.with_sources(Group(1, 0), (0, 3))  # heads of two groups
    assert map_options(by_heads, DENSE, [False] * 5) is None
    assert map_options(DENSE, DENSE, [False] * 5) == ()
    mixed = of_layers(DENSE, (0, 0, 0, 3, 4))  # with sliding windows, 0-2 means layers 0 and 2
    assert map_options(mixed, DENSE, [True, False, True, False, True]) is None
    assert map_options(mixed, DENSE, [False] * 5) == ("--spans", "0-2")


def test_layers_without_attention():
    assert without_layers(DENSE, [1, 3]) == parsed(None, "1,3") and without_layers(DENSE, []) == DENSE


def test_maps_that_have_no_text_have_words():
    found = DENSE.with_sources(Group(3, 0), (7, 10))
    assert sharing_text(found) == "1 groups by head" and map_text(found.with_drop(Group(4, 1))).endswith(" without 4.1")
    assert in_words(found, 3) == "2 compute, 1 follow layer 1"
    assert short_text(found).startswith("1follow0drop-") and short_text(found) != short_text(parsed("1.0:3.0"))


@pytest.mark.parametrize(
    ("spans", "drop", "message"),
    [
        ("1.0", None, "cannot be read"),
        ("1.0:2", None, "cannot be read"),
        ("1.0-1:2.0", None, "cannot be read"),
        ("1.3:2.0", None, "layer 1 has groups 0-2"),
        ("1.0:5.0", None, "layer 5 is out of range"),
        ("1.0:1.1", None, "not a head of an earlier layer"),
        ("3.0:2.0", None, "not a head of an earlier layer"),
        ("1.0:2.0+2.0", None, "has another action already"),
        ("1.0:2.0,2.0:3.0", None, "does not compute its own"),
        ("1.0:2.0", "1", "does not compute its own"),
        ("1.0:2.0", "2.0", "has another action already"),
        ("1-2,1.0:2.0", None, "has another action already"),
        (None, "x", "cannot be read"),
        (None, "", "cannot be read"),
        (None, "5", "layer 5 is out of range"),
        (None, "1.2-3", "out of range"),
    ],
)
def test_bad_texts(spans, drop, message):
    with pytest.raises(BadSpans) as error:
        parsed(spans, drop)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("group", "sources", "message"),
    [
        (Group(2, 0), (6, DROPPED), "is not a head of an earlier layer"),
        (Group(2, 0), (6, 3), "sources in different layers"),
        (Group(2, 0), (-2, -2), "is not a head of an earlier layer"),
        (Group(2, 0), (13, 12), "is not a head of an earlier layer"),
    ],
)
def test_bad_maps(group, sources, message):
    with pytest.raises(BadSpans, match=message):
        check(DENSE.with_sources(group, sources))
