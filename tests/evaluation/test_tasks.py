"""Reading of task files: both kinds of items, and the field that an error names."""

import json
from pathlib import Path

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.evaluation.tasks import Choices, Completion, read_tasks

ROOT = Path(__file__).parents[2]


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


# ---------------------------------------------------------------- reading

CHOICES = {"prompt": "import", "choices": [" os", " x"], "answer": 0}
TARGET = {"prompt": "2 + 2 =", "target": "4"}


def test_both_kinds_in_one_file(tmp_path):
    full = TARGET | {"stop": [";", "."], "max_tokens": 3, "id": {"any": "thing"}}
    path = write(tmp_path / "tasks.jsonl", CHOICES | {"id": 7}, "", TARGET, full)
    assert read_tasks(path).items == (
        Choices(1, "import", (" os", " x"), 0),
        Completion(3, "2 + 2 =", "4", ("\n",), 64),
        Completion(4, "2 + 2 =", "4", (";", "."), 3),
    )


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"prompt": "a",}', "not JSON at column 16: Expecting property name enclosed in double quotes"),
        ("[" * 100_000, "not JSON that can be read"),
        ("[1]", "not a JSON object"),
        ({"prompt": "a"}, "choices, target: one of the two is needed"),
        ({"choices": ["a", "b"], "answer": 0}, "prompt: is missing"),
        (CHOICES | {"prompt": 3}, "prompt: must be a string of Unicode text"),
        (CHOICES | {"prompt": "\ud800"}, "prompt: must be a string of Unicode text"),
        (CHOICES | {"choices": " os"}, "choices: must be a list of strings that are not empty"),
        (CHOICES | {"choices": [" os", ""]}, "choices: must be a list of strings that are not empty"),
        (CHOICES | {"choices": [" os"]}, "choices: 1 of them; 2 to 255 are possible"),
        (CHOICES | {"answer": 2}, "answer: 2; the choices are 0 to 1"),
        (CHOICES | {"answer": -1}, "answer: -1; the choices are 0 to 1"),
        (CHOICES | {"answer": True}, "answer: must be an integer, counted from 0"),
        (CHOICES | {"answer": "0"}, "answer: must be an integer, counted from 0"),
        (CHOICES | {"target": "x"}, "target: unknown field; known beside 'choices': prompt, choices, answer, id"),
        (
            TARGET | {"stops": ["."]},
            "stops: unknown field; known beside 'target': prompt, target, stop, max_tokens, id",
        ),
        (TARGET | {"target": " \n"}, "target: is empty"),
        (TARGET | {"target": "4\n5"}, 'target: contains "\\n", where generation stops'),
        (TARGET | {"stop": "\n"}, "stop: must be a list of strings that are not empty"),
        (TARGET | {"max_tokens": 0}, "max_tokens: 0; at least 1 is needed"),
        (TARGET | {"max_tokens": 2.5}, "max_tokens: must be an integer"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path, line, problem):
    path = write(tmp_path / "tasks.jsonl", TARGET, line)
    with pytest.raises(BadInput) as error:
        read_tasks(path)
    assert str(error.value) == f"{path}: line 2: {problem}"


def test_files_that_hold_no_tasks(tmp_path):
    with pytest.raises(BadInput, match=r"empty\.jsonl: no items; one JSON object per line is expected"):
        read_tasks(write(tmp_path / "empty.jsonl", "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(BadInput, match=r"latin\.jsonl: not UTF-8 text"):
        read_tasks(tmp_path / "latin.jsonl")
