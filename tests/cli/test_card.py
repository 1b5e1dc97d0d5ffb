"""The model card: huggingface_hub can read it, and it never overwrites a file."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support import small_gguf


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    url = "https://huggingface.co/org/Small"
    return small_gguf.write_dense(tmp_path / "dense.gguf", general_license="apache-2.0", general_repo_url=url)


def test_a_folder_gets_a_card(run, dense, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    done = run(dense, "--spans", "6-9", "-o", folder)
    (file,) = folder.glob("*.gguf")
    assert done.stdout == f"{file}\n"
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "org/Small"
    assert card.data.tags == ["gguf", "shared-attention", "llama.cpp"] and card.data.library_name == "gguf"
    for text in (
        "# Small SA6-9",
        "| `6-9` | layer 6 computes; layers 7, 8 and 9 reuse its attention weights |",
        f"shareatt-export {dense} --spans 6-9 -o {folder}",
        f"| {file.name} | {file.stat().st_size} | {hashlib.sha256(file.read_bytes()).hexdigest()} |",
        f"shareatt-export run {file.name}",
        "was not measured",
    ):
        assert text in card.text
    again = run(dense, "--spans", "2-4", "-o", folder)
    assert again.error == f"Error: {folder / 'README.md'}: exists already; use --force to overwrite it"


def test_a_file_gets_one_when_it_is_asked_for(run, dense, tmp_path):
    run(dense, "--spans", "6-9", "-o", tmp_path / "a.gguf")
    assert not (tmp_path / "README.md").exists()
    run(dense, "--spans", "6-9", "-o", tmp_path / "b.gguf", "--card")
    assert (tmp_path / "README.md").exists()


def test_another_site_is_no_base_model(run, tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", general_repo_url="https://example.invalid/org/Small")
    run(dense, "--spans", "6-9", "-o", tmp_path / "a.gguf", "--card")
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None


def test_text_of_a_stranger_stays_text(run, tmp_path):
    evil = small_gguf.write_dense(tmp_path / "dense.gguf", general_license='x"\ninjected: true')
    run(evil, "--spans", "6-9", "-o", tmp_path / "a.gguf", "--card")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.license == 'x"\ninjected: true' and "injected" not in data.to_dict()


def test_the_report_is_what_json_prints(run, dense, tmp_path):
    report = tmp_path / "report.json"
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "a.gguf", "--json", "--report", report)
    assert json.loads(report.read_text()) == json.loads(done.stdout)
    again = run(dense, "--spans", "6-9", "-o", tmp_path / "b.gguf", "--report", report)
    assert again.error == f"Error: {report}: exists already; use --force to overwrite it"
    assert not (tmp_path / "b.gguf").exists()
