"""Output folders that do not exist yet: the command makes them, and removes them if it fails."""

import json
import re

import pytest

from tests.support import small_gguf, tiny_models


@pytest.fixture
def dense(tmp_path):
    return small_gguf.write_dense(tmp_path / "dense.gguf")


def test_a_name_that_ends_in_a_slash_is_a_folder(run, dense, tmp_path):
    done = run(dense, "--spans", "6-9", "-o", f"{tmp_path}/new/folder/")
    assert done.status == 0, done.stderr
    model, card = sorted((tmp_path / "new" / "folder").iterdir(), key=lambda path: path.suffix)
    assert re.fullmatch(r"Small-[0-9.]+[KM]-SA6-9-v1.0-F32\.gguf", model.name) and card.name == "README.md"


def test_a_checkpoint_goes_into_a_folder_that_is_still_to_be_made(run, tmp_path):
    done = run(tiny_models.DEMO, "--spans", "6-9", "-o", f"{tmp_path}/new/folder/", "-q")
    assert done.status == 0, done.stderr
    (file,) = (tmp_path / "new" / "folder").glob("*.gguf")
    assert done.stdout == f"{file}\n" and [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_was_made_goes_if_the_export_fails(run, dense, tmp_path):
    (tmp_path / "there").mkdir()
    done = run(
        dense, "--spans", "6-9", "-o", f"{tmp_path}/there/new/deep/", "--report", tmp_path / "no" / "folder.json"
    )
    assert done.status == 1 and list((tmp_path / "there").iterdir()) == []
    data = bytearray(dense.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # NaN
    dense.write_bytes(data)
    done = run(dense, "--spans", "6-9", "-o", f"{tmp_path}/there/new/deep/")
    assert "is NaN or infinite" in done.error and list((tmp_path / "there").iterdir()) == []


def test_a_dry_run_makes_no_folder(run, dense, tmp_path):
    assert run(dense, "--spans", "6-9", "-o", f"{tmp_path}/new/", "--dry-run").status == 0
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(run, dense, tmp_path):
    done = run(dense, "--spans", "6-9", "-o", f"{dense}/")
    assert done.status == 1 and str(dense) in done.error


def test_analyze_and_search_make_their_folder(run, demo_dense, tmp_path):
    options = ["--text", tiny_models.DEMO / "heldout.txt", "--ctx", 64, "--windows", 2, "-q"]
    done = run("analyze", demo_dense, *options, "--reach", 1, "-o", tmp_path / "a" / "b")
    assert done.status == 0 and json.loads((tmp_path / "a" / "b" / "analysis.json").read_text())
    search = [
        "search",
        demo_dense,
        *options,
        "--followers",
        1,
        "--fast",
        "--no-align",
        "--no-refit",
        "-o",
        tmp_path / "s",
    ]
    assert run(*search).status == 0 and json.loads((tmp_path / "s" / "search.json").read_text())


def test_a_folder_that_was_made_goes_if_the_analysis_fails(run, dense, tmp_path):
    assert run("analyze", dense, "-o", tmp_path / "new").status == 1  # it has no tokenizer
    assert not (tmp_path / "new").exists()
