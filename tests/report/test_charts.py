"""The geometry of charts and heatmaps."""

import re

import pytest

from shareatt_export.report.charts import FRAME, Scale, Series, Value, chart, stairs
from shareatt_export.report.heatmaps import heatmap
from shareatt_export.report.tables import Bar, bars, table
from shareatt_export.report.values import Interval


def test_a_linear_scale():
    scale = Scale([10, 20], 0, 100)
    assert scale.place(15) == 50 and 0 < scale.place(10) < scale.place(20) < 100
    assert [text for _, text in scale.ticks()] == ["10", "15", "20"]
    assert [text for _, text in Scale([0, 16384], 0, 100).ticks()] == ["0", "5,000", "10,000", "15,000"]


def test_a_logarithmic_scale():
    scale = Scale([0, 0.01, 1], 100, 0, log=True)
    assert scale.place(0) == 100  # at the start, as the logarithm has no place for it
    assert scale.place(0.01) - scale.place(0.1) == pytest.approx(scale.place(0.1) - scale.place(1), abs=0.1)
    assert [text for _, text in scale.ticks()] == ["0.01", "0.1", "1"]
    assert [text for _, text in Scale([0.02, 0.05], 100, 0, log=True).ticks()] == ["0.02", "0.05"]


@pytest.mark.parametrize("values", [[], [0], [5, 5], [0, 0]])
@pytest.mark.parametrize("log", [False, True])
def test_scales_of_hardly_any_values(values, log):
    scale = Scale(values, 0, 100, log=log)
    assert 0 <= scale.place(5) <= 100 and all(0 <= place <= 100 for place, _ in scale.ticks())


def test_all_marks_labels_and_whiskers_are_inside():
    places = [(1, 1), (1, 1.01), (9, 8)]
    values = tuple(Value(x, Interval(y, y / 2, y * 2), "", str(i)) for i, (x, y) in enumerate(places))
    drawn = chart("", "", "", [Series("a", 0, values)], [(4.0, "rule")], log=True)
    marks = drawn.series[0].marks
    for mark in marks:
        assert FRAME.left < mark.x < FRAME.right and FRAME.top < mark.high < mark.y < mark.low < FRAME.bottom
        assert FRAME.left < mark.label_x < FRAME.right and FRAME.top < mark.label_y < FRAME.bottom
    assert FRAME.top < drawn.rules[0].y < FRAME.bottom


def test_the_name_of_a_line_makes_room_for_marks():
    def anchor(crowded, free):
        values = [(crowded, 0.95), (crowded, 1.0), (crowded, 1.05), (free, 2.0)]
        series = Series("a", 0, tuple(Value(x, Interval(y), "") for x, y in values))
        return chart("", "", "", [series], [(1.0, "dense")]).rules[0].anchor

    assert (anchor(0, 10), anchor(10, 0)) == ("end", "start")


def test_labels_of_marks_in_one_place_are_in_several():
    values = tuple(Value(5 + 0.001 * i, Interval(1.0), "", str(i)) for i in range(10))
    marks = (
        chart("", "", "", [Series("a", 0, (*values, Value(0, Interval(0.0), ""), Value(10, Interval(2.0), "")))])
        .series[0]
        .marks
    )
    places = [(mark.label_x, mark.label_y) for mark in marks if mark.label]
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) >= 12 or abs(y - b) >= 11 for a, b in places[:i])


def test_many_series_look_different():
    drawn = chart("", "", "", [Series("", i, (Value(0, Interval(1.0), ""),)) for i in range(20)]).series
    assert len({(each.style, each.shape) for each in drawn}) == 20


def test_stairs():
    assert stairs([(1, 3), (2, 2), (4, 1)]) == [(1, 3), (2, 3), (2, 2), (4, 2), (4, 1)]
    assert stairs([]) == []


def test_a_heatmap_has_each_cell_once():
    values = [[0.0, 0.5, None], [1.0, 0.49, 2.0]]
    found = heatmap("id", "", "", "", values, 1.0)
    cells = {match: level.colour for level in found.levels for match in re.findall(r"M(\d) (\d)h1v1h-1z", level.path)}
    assert cells == {("0", "0"): 0, ("1", "0"): 4, ("0", "1"): 7, ("1", "1"): 3, ("2", "1"): 7}
    assert ("1", "0") in cells and ("2", "0") not in cells  # not measured
    assert [number[:3] for number in found.numbers][:2] == [(0, 0, "0"), (1, 0, ".50")] and not found.is_whole
    assert (found.n_rows, found.n_columns) == (2, 3)
    assert heatmap("id", "", "", "", [[0.0] * 17] * 17, 1.0).numbers == ()
    assert heatmap("id", "", "", "", [[None]], None).levels[0].path == ""


def test_bars():
    assert bars([Interval(1, 0.5, 2), None, Interval(0)]) == [Bar(25.0, 50.0, 100.0), None, Bar(0.0, 0.0, 0.0)]
    assert bars([Interval(1), Interval(3)], low=None) == [Bar(0.0, 0.0, 0.0), Bar(100.0, 100.0, 100.0)]
    assert bars([Interval(2), Interval(4)]) == [Bar(50.0, 50.0, 50.0), Bar(100.0, 100.0, 100.0)]
    assert bars([None]) == [None] and bars([Interval(0)]) == [Bar(0.0, 0.0, 0.0)]


def test_a_column_that_says_nothing_is_left_out():
    found = table("", ("a", "b", "c"), [("1", "", ""), ("2", "", "3")])
    assert found.columns == ("a", "c")
    assert [[cell.text for cell in row] for row in found.rows] == [["1", ""], ["2", "3"]]
