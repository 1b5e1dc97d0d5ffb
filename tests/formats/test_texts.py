"""Texts of files and folders, and the mixture that is used without them."""

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.formats.texts import Corpus, Text, mixed, read_corpus, read_text, spread


def test_a_file_a_folder_and_a_text(tmp_path):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.md").write_text("first")
    (folder / "sub" / "c.py").write_text("third")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / ".hidden").write_text("no")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("no")
    file = tmp_path / "file.txt"
    file.write_text("of a file")
    corpus = read_corpus([folder, str(file), Text("mine", "of my own")])
    assert [text.content for text in corpus.texts] == ["first\n\nsecond\n\nthird", "of a file", "of my own"]
    assert corpus.name == f"{folder}, {file}, mine"
    assert read_corpus(file).texts == (read_text(file),) and read_corpus(corpus) is corpus


def test_what_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="has no file in UTF-8"):
        read_corpus(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(BadInput, match="not UTF-8"):
        read_corpus(tmp_path / "latin1.txt")


def test_one_text_has_its_own_hash_and_several_another_in_any_order():
    a, b = Text("a", "A"), Text("b", "B")
    assert Corpus((a,)).sha256 == a.sha256
    assert len({Corpus((a,)).sha256, Corpus((b,)).sha256, Corpus((a, b)).sha256, Corpus((b, a)).sha256}) == 4


def test_the_mixture_has_four_kinds_of_text_long_enough_for_a_search():
    for nothing in (None, (), []):
        corpus = read_corpus(nothing)
        assert [text.name for text in corpus.texts] == [
            f"mixture/{kind}" for kind in ("prose", "code", "documentation", "chat")
        ]
    assert all(len(text.content) > 50_000 for text in corpus.texts)
    assert "def " in corpus.texts[1].content and "\n\nAssistant: " in corpus.texts[3].content


def test_items_are_spread():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8] and spread(range(3), 5) == range(3)


@pytest.mark.parametrize(
    ("sizes", "n"), [([40, 40], 16), ([40, 40, 40, 40], 64), ([40, 3], 16), ([5], 16), ([2, 2], 16)]
)
def test_groups_take_turns(sizes, n):
    groups = [[(group, item) for item in range(size)] for group, size in enumerate(sizes)]
    found = mixed(groups, n)
    assert len(found) == len(set(found)) == min(n, sum(sizes))
    counts = [sum(group == which for group, _ in found) for which in range(len(sizes))]
    least = min(n // len(sizes), *sizes) if len(sizes) > 1 else min(n, *sizes)
    assert min(counts) == least
    for which, size in enumerate(sizes):
        items = [item for group, item in found if group == which]
        assert items == sorted(items) and (counts[which] == size or items[-1] > size - 1 - size / counts[which])


@pytest.mark.parametrize("n_groups", [2, 3, 4])
def test_neither_the_first_nor_every_fourth_items_are_of_one_group(n_groups):
    """A fit holds out every fourth window, and a search compares maps on the first ones."""
    found = mixed([[group] * 100 for group in range(n_groups)], 64)
    assert set(found[:n_groups]) == set(found[3::4]) == set(range(n_groups))
    assert max(found[3::4].count(group) for group in range(n_groups)) <= 0.7 * 16
