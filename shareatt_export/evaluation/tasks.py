"""Task files: JSON lines, each an item of one of two kinds.

    {"prompt": "The sky is", "choices": [" blue", " a verb"], "answer": 0}
    {"prompt": "2 + 2 =", "target": "4", "stop": ["\\n"], "max_tokens": 8}

A choice follows its prompt as it stands, so one that needs a space begins with it. `id` is free for the file's author.
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
    line: int
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Completion:
    line: int
    prompt: str
    target: str
    stop: tuple[str, ...] = STOP
    max_tokens: int = MAX_TOKENS


Item = Choices | Completion


@dataclass(frozen=True)
class Tasks:
    path: Path
    sha256: str
    items: tuple[Item, ...]


def at(path: Path, line: int, problem: str) -> BadInput:
    """`problem` begins with the field."""
    return BadInput(f"{path}: line {line}: {problem}")


def read_tasks(path: Path) -> Tasks:
    """Raises BadInput that names the line and the field."""
    raw = path.read_bytes()
    try:
        lines = raw.decode().split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text") from None
    items = tuple(_item(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise BadInput(f"{path}: no items; one JSON object per line is expected")
    return Tasks(path, hashlib.sha256(raw).hexdigest(), items)


def _item(path: Path, line: int, text: str) -> Item:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise at(path, line, f"not JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, nesting of thousands of levels
        raise at(path, line, "not JSON that can be read") from None
    if not isinstance(fields, dict):
        raise at(path, line, "not a JSON object")
    kind, known = (_choices, CHOICES_FIELDS) if "choices" in fields else (_completion, COMPLETION_FIELDS)
    for name in fields:
        if name not in known:
            raise at(path, line, f"{name}: unknown field; known beside '{known[1]}': {', '.join(known)}")
    try:
        return kind(line, fields)
    except _BadField as error:
        raise at(path, line, str(error)) from None


CHOICES_FIELDS = ("prompt", "choices", "answer", "id")
COMPLETION_FIELDS = ("prompt", "target", "stop", "max_tokens", "id")


class _BadField(Exception):
    pass


def _choices(line: int, fields: dict[str, Any]) -> Choices:
    choices = _texts(fields, "choices")
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise _BadField(f"choices: {len(choices)} of them; 2 to {MAX_CHOICES} are possible")
    answer = _field(fields, "answer", "an integer, counted from 0", _is_integer)
    if not 0 <= answer < len(choices):
        raise _BadField(f"answer: {answer}; the choices are 0 to {len(choices) - 1}")
    return Choices(line, _text(fields, "prompt"), choices, answer)


def _completion(line: int, fields: dict[str, Any]) -> Completion:
    if "target" not in fields:
        raise _BadField("choices, target: one of the two is needed")
    target = _text(fields, "target")
    if not target.strip():
        raise _BadField("target: is empty")
    stop = _texts(fields, "stop") if "stop" in fields else STOP
    for text in stop:
        if text in target.strip():
            raise _BadField(f"target: contains {json.dumps(text)}, where generation stops")
    max_tokens = _field({"max_tokens": MAX_TOKENS} | fields, "max_tokens", "an integer", _is_integer)
    if max_tokens < 1:
        raise _BadField(f"max_tokens: {max_tokens}; at least 1 is needed")
    return Completion(line, _text(fields, "prompt"), target, stop, max_tokens)


def _field(fields: dict[str, Any], name: str, what: str, holds: Callable[[Any], bool]) -> Any:
    if name not in fields:
        raise _BadField(f"{name}: is missing")
    if not holds(fields[name]):
        raise _BadField(f"{name}: must be {what}")
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
