"""`shareatt-export report`, and the pages that other commands write."""

import json

import pytest

WRONG = '{"model": "a", "similarity": 3, "pairs": [], "text": {}}'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(
        json.dumps({"text": {"name": "a <b>"}, "scores": [{"model": "m", "name": "dense"}], "positions": []})
    )
    return path


def test_the_command(run, file, tmp_path):
    out = tmp_path / "report.html"
    done = run("report", file, "-o", out)
    assert (done.status, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert "a &lt;b&gt;" in out.read_text() and out.read_text().startswith("<!doctype html>")
    assert run("report", file, "-o", out).error == f"Error: {out}: exists already; use --force to overwrite it"
    assert run("report", file, "-o", out, "--force", "-q").stdout == ""


def test_what_is_refused(run, file, tmp_path):
    wrong, out = tmp_path / "wrong.json", tmp_path / "report.html"
    wrong.write_text(WRONG)
    done = run("report", file, wrong, "-o", out)
    assert done.error == f"Error: {wrong}: similarity: is not a list; write the file again"
    assert "is the input itself" in run("report", file, "-o", file, "--force").error
    assert "the folder" in run("report", file, "-o", tmp_path / "none" / "r.html").error
    assert run("report", tmp_path, "-o", out).error.startswith(f"Error: {tmp_path}: Is a directory")
    assert run("report", "-o", out).status == 2
    assert not out.exists()


def test_the_page_is_refused_before_anything_is_measured(run, demo_dense, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    for command in ("eval", "bench"):
        done = run(command, demo_dense, tmp_path / "none.gguf", "--report", tmp_path / "report.html")
        assert done.error == f"Error: {tmp_path / 'report.html'}: exists already; use --force to overwrite it"
    assert (tmp_path / "report.html").read_text() == "mine"


def test_the_commands_write_the_page_that_report_writes(run, reports, tmp_path):
    """Except for the name of the file, which the commands do not know yet."""
    for kind, path in reports.items():
        own = path.with_name("report.html") if path.name != f"{kind}.json" else path.with_suffix(".html")
        assert run("report", path, "-o", tmp_path / f"{kind}.html").status == 0
        names = {path.name, str(path), kind}
        texts = [page.read_text() for page in (own, tmp_path / f"{kind}.html")]
        assert without(texts[0], names) == without(texts[1], names)


def without(text, names):
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f"{name} (", "FILE (")
    return text
