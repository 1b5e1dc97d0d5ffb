"""The span syntax: texts and their meaning. tests/faults/test_spans.py has the texts that are refused."""

import pytest

from shareatt_export.errors import BadSpans
from shareatt_export.model.spans import parse_spans, source_map, spans_of


def layers(text, n_layer=12, source="first"):
    return list(source_map(parse_spans(text, n_layer, source), n_layer))


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("6-9", "first", [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]),
        ("7-9", "previous", [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]),
        ("6:7-9", "first", [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]),
        ("6:7-9", "previous", [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]),
        ("6:7+8+9", "first", [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]),
        ("0-1", "first", [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("10-11", "first", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]),
        ("6:7", "first", [0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 11]),
        ("2:4+6-7", "first", [0, 1, 2, 3, 2, 5, 2, 2, 8, 9, 10, 11]),
        ("1-2,3-4", "first", [0, 1, 1, 3, 3, 5, 6, 7, 8, 9, 10, 11]),
        ("1-2, 5-7", "first", [0, 1, 1, 3, 4, 5, 5, 5, 8, 9, 10, 11]),
        ("2:5,3:6", "first", [0, 1, 2, 3, 4, 2, 3, 7, 8, 9, 10, 11]),
        ("every:2", "first", [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]),
        ("every:5", "first", [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10]),
        ("every:11", "first", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]),
        ("every:12", "first", [0] * 12),
    ],
)
def test_source_map(text, source, expected):
    assert layers(text, source=source) == expected


@pytest.mark.parametrize("text", ["6-9", "0-1", "2:4+6-7", "1-2,3-4", "2:5,3:6", "10-11"])
def test_text_is_read_back(text):
    spans = parse_spans(text, 12)
    assert ",".join(map(str, spans)) == text
    assert spans_of(source_map(spans, 12)) == spans


def test_words():
    assert [span.in_words() for span in parse_spans("1-2,6-9", 12)] == [
        "layer 1 computes; layer 2 reuses its attention weights",
        "layer 6 computes; layers 7, 8 and 9 reuse its attention weights",
    ]


@pytest.mark.parametrize("bad", [(0, 2, 2), (0, -1), (0, 0, 1), (1, 1)])
def test_bad_maps(bad):
    with pytest.raises(BadSpans, match="source map: layer"):
        spans_of(bad)


SWA = [False, True, True] * 4  # layers 0, 3, 6, 9 attend to everything


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-5", [0, 1, 1, 0, 1, 1, 6, 7, 8, 9, 10, 11]),
        ("6-8", [0, 1, 2, 3, 4, 5, 6, 7, 7, 9, 10, 11]),
        ("6:9", [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 10, 11]),
        ("0-3,7:8+10", [0, 1, 1, 0, 4, 5, 6, 7, 7, 9, 7, 11]),
        ("every:4", [0, 1, 1, 0, 4, 4, 6, 4, 8, 9, 8, 8]),
        ("every:2", [0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10, 10]),
    ],
)
def test_a_range_shares_within_each_kind_of_attention(text, expected):
    assert list(source_map(parse_spans(text, 12, is_swa=SWA), 12)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6:7", "span '6-7': only one of the layers 6 and 7 has a sliding window"),
        ("0-5,7:9", "span '7:9': only one of the layers 7 and 9 has a sliding window"),
        ("2-3", "spans '2-3': no span has two layers of one kind"),
    ],
)
def test_kinds_of_attention_are_not_mixed(text, message):
    with pytest.raises(BadSpans, match=message):
        parse_spans(text, 12, is_swa=SWA)
