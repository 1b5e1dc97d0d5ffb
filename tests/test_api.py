"""The Python API."""

import inspect

import pytest

import shareatt_export
from shareatt_export.exporting.request import ExportRequest
from tests.support import small_gguf, tiny_models


def test_export_as_a_function(tmp_path):
    dense, seen = small_gguf.write_dense(tmp_path / "dense.gguf"), []
    done = shareatt_export.export(
        str(dense), "6-9", str(tmp_path / "out.gguf"), progress=lambda *step: seen.append(step)
    )
    assert done.files == (tmp_path / "out.gguf",) and done.job.plan.spans_text == "6-9"
    assert {what for what, _ in seen} == {"writing"}
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1


def test_its_errors_are_one_family(tmp_path):
    with pytest.raises(shareatt_export.ShareattError, match="no such file or folder"):
        shareatt_export.export(tmp_path / "none.gguf", "6-9", tmp_path / "out.gguf")
    with pytest.raises(ValueError, match="'Q4_X' is not one of auto"):
        shareatt_export.export(tmp_path / "none.gguf", "6-9", tmp_path / "out.gguf", outtype="Q4_X")
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = shareatt_export.exprot


def test_a_request_and_its_fields_are_the_same(tmp_path):
    dense, seen = small_gguf.write_dense(tmp_path / "dense.gguf"), []
    request = ExportRequest(dense, "6-9", tmp_path / "a.gguf")
    (a,) = shareatt_export.export(request, progress=lambda *step: seen.append(step)).files
    (b,) = shareatt_export.export(dense, spans="6-9", out=tmp_path / "b.gguf").files
    assert a.read_bytes() == b.read_bytes() and seen


def test_the_functions_have_the_signatures_of_their_requests():
    names = {
        name: f"{name.capitalize()}Request" for name in ("export", "search", "analyze", "evaluate", "heal", "bench")
    }
    for name, request_name in (names | {"search_groups": "GroupSearchRequest"}).items():
        function, request = getattr(shareatt_export, name), getattr(shareatt_export, request_name)
        assert inspect.signature(function) == inspect.signature(request)
        assert inspect.getdoc(function).endswith("ShareattError.")


def test_spans_that_are_searched(demo_dense, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((tiny_models.DEMO / "heldout.txt").read_text()[:16_000])
    options = {"spans": "auto", "followers": 1, "fast": True, "text": text}
    done = shareatt_export.export(demo_dense, out=tmp_path / "out.gguf", **options)
    found = shareatt_export.search(demo_dense, followers=1, fast=True, align=False, refit=False, text=text)
    assert done.job.plan.spans_text == found.spans_text
    with pytest.raises(shareatt_export.ShareattError, match="belong together"):
        shareatt_export.export(demo_dense, spans="auto", out=tmp_path / "none.gguf", text=text)


def test_analysis_and_evaluation_of_a_folder_name_the_folder(demo_dense, tmp_path):
    (sa,) = shareatt_export.export(demo_dense, "6-9", tmp_path / "sa.gguf").files
    size = {"n_ctx": 64, "n_windows": 1}
    done = shareatt_export.evaluate(tiny_models.DEMO, (sa,), **size, baselines=False)
    assert done.scores[0].subject.model == done.request.dense == tiny_models.DEMO
    assert shareatt_export.analyze(tiny_models.DEMO, **size).request.model == tiny_models.DEMO
