"""Errors carry fields; their text is made of these, and a path can be told as another one without touching the text."""

from pathlib import Path

import pytest

from shareatt_export.errors import MAKE_AGAIN, BadInput, Unsupported, damaged, one_line


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "is bad"),
        ({"path": Path("a.gguf")}, "a.gguf: is bad"),
        ({"path": "org/name", "field": "tensor 'x'"}, "org/name: tensor 'x': is bad"),
        ({"field": "--ctx 9", "next_step": "take less"}, "--ctx 9: is bad; take less"),
        ({"path": "f", "field": "k", "next_step": "get it again"}, "f: k: is bad; get it again"),
    ],
)
def test_the_text_joins_the_fields(fields, text):
    assert str(BadInput("is bad", **fields)) == text


def test_what_is_damaged_says_what_to_do():
    assert str(damaged(Path("a"), "k", "3")) == f"a: k: 3; {MAKE_AGAIN}"
    assert damaged(Path("a"), "k", "3", next_step="get it again").next_step == "get it again"


def test_an_error_about_a_temporary_file_is_told_about_the_model():
    error = Unsupported("of 3 bits, as in /tmp/x/dense.gguf", path=Path("/tmp/x/dense.gguf"), field="k", next_step="n")
    moved = error.moved(Path("/tmp/x/dense.gguf"), Path("model"))
    assert type(moved) is Unsupported and str(moved) == "model: k: of 3 bits, as in /tmp/x/dense.gguf; n"
    assert str(error.moved(Path("/tmp/x"), Path("/out"))) == "/out/dense.gguf: k: of 3 bits, as in /tmp/x/dense.gguf; n"
    assert error.moved(Path("/tmp/y"), Path("/out")) is error
    assert BadInput("no path").moved(Path("/tmp/x"), Path("/out")).path is None


def test_names_of_strangers_cannot_act_on_a_terminal():
    assert one_line("a\n b\x1b[31m\u202e") == "a b\\x1b[31m\\u202e"
