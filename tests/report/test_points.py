"""Fronts: which points stand in one picture, and which maps are the best."""

from shareatt_export.report.measurements import measurement
from shareatt_export.report.points import Point, best_maps, fronts
from shareatt_export.report.values import Interval


def point(kv_bytes, kl, kind="layers", type_k="f16"):
    return Point(kind, "", kv_bytes, Interval(kl), None, None, None, type_k, None, None)


def test_the_best_maps():
    good = [point(1, 3.0), point(3, 2.0), point(7, 0.5)]
    beaten = [point(2, 3.0), point(3, 2.5), point(8, 0.5)]
    others = [point(1, 0.1, type_k="q8_0"), point(9, 0.0, kind="dense")]
    assert best_maps([*beaten, *others, *good]) == good


def test_both_searches_on_one_text_are_one_front_and_an_evaluation_is_another(measured):
    search, files = fronts(measured.values())
    assert len(search.files) == 2 and len(files.files) == 1
    kinds = {each.kind for each in search.points}
    assert kinds == {"dense", "layers", "groups", "simple", "usual", "without", "cache"}
    assert sum(each.kind == "dense" for each in search.points) == 1  # both files have it, and it is the same
    assert {each.kind for each in files.points} == {"dense", "file", "cache", "without"}
    assert {each.name for each in files.weights} == {"dense, weights Q4_K_M", "dense, weights Q3_K_M"}
    assert search.dense_bytes == files.dense_bytes == 4608


def test_other_texts_and_windows_are_other_fronts(measured, data):
    for change in ({"text": {"sha256": "x"}}, {"n_ctx": 64}, {"windows": 3}):
        other = measurement(data["groups"] | change, "x.json")
        assert len(fronts([measured["layers"], other])) == 2


def test_every_map_of_a_search_has_its_command(measured):
    search, _ = fronts(measured.values())
    for each in search.points:
        assert (each.command is None) == (each.kind == "dense" or each.name.startswith("dense")), each.name
        assert each.command is None or each.command.startswith("shareatt-export ")


def test_a_file_of_an_older_version(data):
    """It has no shape, no windows, no types, one command, and no map of what is without attention."""
    report = data["layers"]
    for key in ("shape", "windows", "provenance"):
        del report[key]
    for each in (*report["path"], *report["baselines"], report["dropped"]):
        for key in ("source_heads", "type_k", "command", "perplexity_ratio"):
            del each[key]
        each["same_top"] = each["same_top"]["mean"]
    (front,) = fronts([measurement(report, "old.json")])
    commands = {each.command for each in front.points}
    assert commands == {None, report["command"]}
    assert {each.map.unit for each in front.points if each.map} == {"layer"}
    assert all(each.map is None for each in front.points if each.kind == "without")
    assert not any(each.is_map for each in front.points if each.kind == "cache")
    assert front.points[0].same_top == Interval(1.0)
