"""Values of JSON files: those that are missing, and those of a wrong type."""

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.report.values import Interval, Record
from shareatt_export.report.words import number, with_interval


def read(method: str, value: object) -> object:
    return getattr(Record({"key": value}, "file.json", "path[2]"), method)("key")


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("text", "a", "a"),
        ("integer", 3, 3),
        ("number", 3, 3.0),
        ("mean", 0.5, Interval(0.5)),
        ("mean", {"mean": 0.5, "half_ci95": None}, Interval(0.5)),
        ("mean", {"mean": 0.5, "half_ci95": 0.25}, Interval(0.5, 0.25, 0.75)),
        ("share", {"mean": 0.75, "half_ci95": 0.5}, Interval(0.75, 0.25, 1.0)),
        ("share", {"mean": 0.25, "half_ci95": 0.5}, Interval(0.25, 0.0, 0.75)),
        ("share", 0.5, Interval(0.5)),
        ("ratio", {"mean": 2, "half_ci95": 2}, Interval(2.0, 1.0, 4.0)),
        ("ratio", {"mean": 2, "half_ci95": None}, Interval(2.0)),
        ("ends", [0, 1], (0.0, 1.0)),
        ("rows", [[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0))),
        ("integer_rows", [[1, 2], []], ((1, 2), ())),
        ("integers", [1, 2], (1, 2)),
        ("texts", ["a"], ("a",)),
        ("numbers_by_name", {"a": 1, "b": None}, {"a": 1.0}),
    ],
)
def test_values(method, value, expected):
    assert read(method, value) == expected
    assert not read(method, None)  # what is missing is no error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_known(value):
    """A page must not fail after hours of measurement because a model computed no number."""
    assert read("number", value) is read("mean", value) is read("mean", {"mean": value, "half_ci95": 1}) is None
    assert read("mean", {"mean": 1, "half_ci95": value}) == Interval(1.0)
    assert read("rows", [[1, value]]) == ((1.0, None),) and read("numbers_by_name", {"a": value}) == {}
    assert read("ends", [0, value]) is None


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("text", 3, "path[2].key: is not text"),
        ("integer", 3.5, "path[2].key: is not a whole number"),
        ("integer", True, "path[2].key: is not a whole number"),
        ("integer", 10**400, "path[2].key: is not a whole number"),
        ("number", "3", "path[2].key: is not a number"),
        ("number", True, "path[2].key: is not a number"),
        ("number", 10**400, "path[2].key: is not a number"),
        ("mean", {"mean": []}, "path[2].key.mean: is not a number"),
        ("ends", [1], "path[2].key: is not two numbers"),
        ("rows", [[1, 2], [3]], "path[2].key: is not lists of numbers, all of one length"),
        ("integer_rows", [[1.5]], "path[2].key: is not lists of whole numbers"),
        ("integers", [True], "path[2].key: is not a list of whole numbers"),
        ("texts", [1], "path[2].key: is not a list of texts"),
        ("records", [1], "path[2].key[0]: is not an object"),
        ("record", [], "path[2].key: is not an object"),
        ("numbers_by_name", {"a": "b"}, "path[2].key.a: is not a number"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(method, value, expected):
    with pytest.raises(BadInput) as error:
        read(method, value)
    assert str(error.value) == f"file.json: {expected}; write the file again"


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0, 2, "0"),
        (0.0000456, 2, "0.000046"),
        (0.06, 2, "0.060"),
        (1, 4, "1.000"),
        (100, 3, "100"),
        (-0.5, 2, "-0.50"),
        (123456.7, 3, "123,457"),
        (1e-12, 2, "1.0e-12"),
    ],
)
def test_numbers_in_words(value, digits, expected):
    assert number(value, digits) == expected


def test_intervals_in_words():
    assert with_interval(Interval(0.5, 0.25, 0.75), 2, 100, " %") == "50 (25 to 75) %"
    assert with_interval(Interval(0.5), 2) == with_interval(Interval(0.5, 0.5, 0.5), 2) == "0.50"
    assert with_interval(None) == ""
