"""Task files: JSON lines, each with an item of one of two kinds.

    {"prompt": "The sky is", "choices": [" blue", " a verb"], "answer": 0}
    {"prompt": "2 + 2 =", "target": "4", "stop": ["\\n"], "max_tokens": 8}

A choice is added to its prompt without a space between them, so a choice that needs one begins with it. The field `id`
is ignored; it is for the file's author.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput

MAX_CHOICES = 255  # LLAMA_MAX_SEQ is 256
STOP = ("\n",)
MAX_TOKENS = 64


@dataclass(frozen=True)
class Choices:
    """A prompt and its possible continuations. `line`: in the file, from 1. `answer`: index of the right choice."""

    line: int
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Completion:
    """A prompt that the model completes, with at most `max_tokens` tokens, up to where a text of `stop` begins."""

    line: int
    prompt: str
    target: str
    stop: tuple[str, ...] = STOP
    max_tokens: int = MAX_TOKENS


Item = Choices | Completion


@dataclass(frozen=True)
class Tasks:
    """A task file. `sha256`: digest of its bytes in hexadecimal."""

    path: Path
    sha256: str
    items: tuple[Item, ...]


def bad_line(path: Path, line: int, reason: str, field: str | None = None) -> BadInput:
    """Return the error for a line, or for a field in it."""
    return BadInput(reason, path=path, field=f"line {line}" if field is None else f"line {line}: {field}")


def read_tasks(path: Path) -> Tasks:
    """Read a task file. Raises BadInput with the line and the field that are wrong."""
    raw = path.read_bytes()
    try:
        lines = raw.decode().split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError:
        raise BadInput("not UTF-8 text", path=path) from None
    items = tuple(_item(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise BadInput("no items", path=path, next_step="one JSON object per line is expected")
    return Tasks(path, hashlib.sha256(raw).hexdigest(), items)


def _item(path: Path, line: int, text: str) -> Item:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise bad_line(path, line, f"not JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, nesting of thousands of levels
        raise bad_line(path, line, "not JSON that can be read") from None
    if not isinstance(fields, dict):
        raise bad_line(path, line, "not a JSON object")
    kind, known = (_choices, CHOICES_FIELDS) if "choices" in fields else (_completion, COMPLETION_FIELDS)
    for name in fields:
        if name not in known:
            raise bad_line(path, line, f"unknown field; known beside '{known[1]}': {', '.join(known)}", name)
    try:
        return kind(line, fields)
    except _BadField as error:
        raise bad_line(path, line, error.reason, error.field) from None


CHOICES_FIELDS = ("prompt", "choices", "answer", "id")
COMPLETION_FIELDS = ("prompt", "target", "stop", "max_tokens", "id")


class _BadField(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


def _choices(line: int, fields: dict[str, Any]) -> Choices:
    choices = _texts(fields, "choices")
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise _BadField("choices", f"{len(choices)} of them; 2 to {MAX_CHOICES} are possible")
    answer = _field(fields, "answer", "an integer, counted from 0", _is_integer)
    if not 0 <= answer < len(choices):
        raise _BadField("answer", f"{answer}; the choices are 0 to {len(choices) - 1}")
    return Choices(line, _text(fields, "prompt"), choices, answer)


def _completion(line: int, fields: dict[str, Any]) -> Completion:
    if "target" not in fields:
        raise _BadField("choices, target", "one of the two is needed")
    target = _text(fields, "target")
    if not target.strip():
        raise _BadField("target", "is empty")
    stop = _texts(fields, "stop") if "stop" in fields else STOP
    for text in stop:
        if text in target.strip():
            raise _BadField("target", f"contains {json.dumps(text)}, where generation stops")
    max_tokens = _field({"max_tokens": MAX_TOKENS} | fields, "max_tokens", "an integer", _is_integer)
    if max_tokens < 1:
        raise _BadField("max_tokens", f"{max_tokens}; at least 1 is needed")
    return Completion(line, _text(fields, "prompt"), target, stop, max_tokens)


def _field(fields: dict[str, Any], name: str, expected: str, is_expected: Callable[[Any], bool]) -> Any:
    if name not in fields:
        raise _BadField(name, "is missing")
    if not is_expected(fields[name]):
        raise _BadField(name, f"must be {expected}")
    return fields[name]


def _text(fields: dict[str, Any], name: str) -> str:
    text: str = _field(fields, name, "a string of Unicode text", _is_text)
    return text


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    return tuple(_field(fields, name, "a list of strings that are not empty", _are_texts))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)  # half a surrogate pair


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(text) and text for text in value)
