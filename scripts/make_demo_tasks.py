#!/usr/bin/env python3
"""Make tasks for the demo model from held-out text: choosing the next line, and repeating a line.

    python scripts/make_demo_tasks.py tests/models/stdlib-5m/heldout.txt FOLDER
    shareatt-export eval DENSE SA --tasks FOLDER/next-line.jsonl --tasks FOLDER/repeat.jsonl

next-line: about 200 tokens of code, and four lines of about the same length and the same indentation. One of them is
the next line; the others are from elsewhere in the text. repeat: as much code, followed by the beginning of one of its
lines, which must be completed as before; no other line has this beginning. The same text always gives the same files.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

N_ITEMS = 200
PROMPT = 540  # maximum number of characters; a token of the demo model has 2.6 on average
LENGTHS = range(20, 70)  # number of characters in a line to be completed
ALIKE = 3  # maximum difference between the lengths of choices
N_DISTRACTORS = 3

Item = dict[str, object]


def indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def before(lines: list[str], i: int) -> list[str]:
    """Return as many whole lines before line i as fit into a prompt."""
    first, size = i, 0
    while first > 0 and size + len(lines[first - 1]) + 1 <= PROMPT:
        first -= 1
        size += len(lines[first]) + 1
    return lines[first:i]


def next_line(lines: list[str], i: int, rng: random.Random) -> Item | None:
    line = lines[i].strip()
    alike = sorted({other.strip() for other in lines if abs(len(other.strip()) - len(line)) <= ALIKE} - {line})
    if len(line) not in LENGTHS or len(alike) < N_DISTRACTORS:
        return None
    choices = [line, *rng.sample(alike, N_DISTRACTORS)]
    rng.shuffle(choices)
    prompt = "\n".join([*before(lines, i), indentation(lines[i])])
    return {"id": f"line {i + 1}", "prompt": prompt, "choices": choices, "answer": choices.index(line)}


def repeat(lines: list[str], i: int, rng: random.Random) -> Item | None:
    context = before(lines, i)
    again = rng.choice(context)
    line = again.strip()
    if len(line) not in LENGTHS:
        return None
    cuts = [match.start() for match in re.finditer(r"\b", line) if line[match.start() - 1] != " "]
    cut = min(cuts, key=lambda at: abs(at - len(line) // 2))
    if [other.strip()[:cut] for other in context].count(line[:cut]) != 1 or not line[cut:].strip():
        return None
    prompt = "\n".join([*context, indentation(again) + line[:cut]])
    return {"id": f"line {i + 1}", "prompt": prompt, "target": line[cut:], "stop": ["\n"], "max_tokens": 48}


def write(path: Path, lines: list[str], make: Callable[[list[str], int, random.Random], Item | None]) -> None:
    rng = random.Random(0)
    places = [i for i in range(1, len(lines)) if len("\n".join(before(lines, i))) > PROMPT // 2]
    items = (make(lines, i, rng) for i in rng.sample(places, len(places)))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(N_ITEMS):
            file.write(json.dumps(next(item for item in items if item)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    lines = args.text.read_text(encoding="utf-8").split("\n")
    args.folder.mkdir(exist_ok=True)
    write(args.folder / "next-line.jsonl", lines, next_line)
    write(args.folder / "repeat.jsonl", lines, repeat)


if __name__ == "__main__":
    main()
