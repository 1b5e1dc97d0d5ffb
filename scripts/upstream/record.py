"""The recorded results: docs/upstream-tests.json, and docs/upstream-tests.md, which is made from it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.upstream.cases import ADDRESS, CASES, PLAIN, REFUSED, THREAD
from scripts.upstream.outcome import Outcome

DOCS = Path(__file__).parents[2] / "docs"
COLUMNS = ("unpatched", "patched", "SA")
TITLES = {
    PLAIN: "The normal build",
    ADDRESS: "AddressSanitizer and UndefinedBehaviorSanitizer",
    THREAD: "ThreadSanitizer",
}
PREFACE = """# llama.cpp's own tests

Each test on the unpatched library with dense models, on the patched one with the same models, and on the patched one
with SA exports of them; made by `scripts/run_upstream_tests.sh --write`, which also fails when the patch changes a
result. "8 pass" is eight models; a number in brackets is a problem in the list below the table. `MODEL` stands for
each model in turn: the demo model, tiny attention-dominant Llamas (MHA, GQA, MQA), one with fused QKV, and upstream's
dummies of the llama architecture. `DUMMIES` is the folder of upstream's dummies of all architectures, all of them
dense. `BAD` are SA files with a bad source map, which must be refused with the message that names key and layer.
"""
Column = dict[str, Outcome]  # by model; "" for a test without a model


@dataclass
class Row:
    columns: dict[str, Column] = field(default_factory=lambda: {name: {} for name in COLUMNS})

    def problems(self, column: str) -> frozenset[str]:
        return frozenset().union(*(outcome.problems for outcome in self.columns[column].values()))


@dataclass
class Results:
    """The results of one kind of build."""

    date: str
    command: str
    llama_cpp: str
    patch: str
    rows: dict[str, Row] = field(default_factory=dict)


def load() -> dict[str, Results]:
    path = DOCS / "upstream-tests.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    return {
        sanitize: Results(**{**entry, "rows": {case: _row(columns) for case, columns in entry["rows"].items()}})
        for sanitize, entry in data.items()
    }


def save(results: dict[str, Results]) -> None:
    results = {sanitize: results[sanitize] for sanitize in TITLES if sanitize in results}
    data = {
        sanitize: vars(entry) | {"rows": {case: _json(row) for case, row in entry.rows.items()}}
        for sanitize, entry in results.items()
    }
    (DOCS / "upstream-tests.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    (DOCS / "upstream-tests.md").write_text("\n".join(_markdown(results)) + "\n")


def _groups(column: Column) -> dict[Outcome, list[str]]:
    groups: dict[Outcome, list[str]] = {}
    for model, outcome in column.items():
        groups.setdefault(outcome, []).append(model)
    return groups


def _json(row: Row) -> dict[str, object]:
    return {
        name: [
            {"models": ", ".join(models)}
            | ({"count": outcome.count} if outcome.count else {})
            | ({"problems": sorted(outcome.problems)} if outcome.problems else {})
            for outcome, models in _groups(column).items()
        ]
        for name, column in row.columns.items()
        if column
    }


def _row(columns: dict[str, list[dict[str, Any]]]) -> Row:
    row = Row()
    for name, groups in columns.items():
        for group in groups:
            outcome = Outcome(group.get("count", ""), frozenset(group.get("problems", ())))
            row.columns[name] |= dict.fromkeys(group["models"].split(", "), outcome)
    return row


def _markdown(results: dict[str, Results]) -> Iterator[str]:
    yield PREFACE
    for sanitize, entry in results.items():
        yield f"## {TITLES[sanitize]}\n"
        yield f"`{entry.command}`, {entry.date}, llama.cpp {entry.llama_cpp}, patch {entry.patch}.\n"
        yield from table(entry.rows)
        yield ""


def table(rows: dict[str, Row]) -> Iterator[str]:
    """Yield the table, and the meaning of its numbers in brackets."""
    problems = sorted({problem for row in rows.values() for name in COLUMNS for problem in row.problems(name)})
    number = {problem: index for index, problem in enumerate(problems, 1)}
    yield f"| test | {' | '.join(COLUMNS)} |"
    yield "| --- |" + " --- |" * len(COLUMNS)
    for command, row in rows.items():
        cells = [", ".join(_cells(row.columns[name], number)) or "-" for name in COLUMNS]
        yield f"| `{command}` | {' | '.join(cells)} |"
    notes = {case.command: case.note for case in CASES if case.note} | {
        REFUSED: "pass means refused with the right message"
    }
    for problem, index in number.items():
        where = [name for name in COLUMNS if any(problem in row.problems(name) for row in rows.values())]
        yield f"{'' if index > 1 else chr(10)}{index}. {problem} ({', '.join(where)})"
    told: dict[str, list[str]] = {note: [] for note in notes.values()}
    for command in rows:
        if command in notes:
            told[notes[command]].append(command)
    yield from (
        f"\n{', '.join(f'`{command}`' for command in commands)}: {note}." for note, commands in told.items() if commands
    )


def _cells(column: Column, number: dict[str, int]) -> Iterator[str]:
    for outcome, models in _groups(column).items():
        text = "".join(f"[{number[problem]}]" for problem in sorted(outcome.problems)) or "pass"
        text += f" ({outcome.count})" if outcome.count else ""
        yield text if models == [""] else f"{len(models)} {text}"
