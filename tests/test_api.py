"""The tool as a library."""

import pytest

import shareatt_export
from tests.support import small


def test_export_as_a_function(tmp_path):
    dense, seen = small.write_dense(tmp_path / "dense.gguf"), []
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
    with pytest.raises(ValueError, match="'Q4_X' is none of auto"):
        shareatt_export.export(tmp_path / "none.gguf", "6-9", tmp_path / "out.gguf", outtype="Q4_X")
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = shareatt_export.exprot
