"""Progress on a terminal, and in a log."""

import io

import pytest
from rich.console import Console

from shareatt_export.cli import progress_bar
from shareatt_export.cli.progress_bar import steps


def said(**options):
    console = Console(file=io.StringIO(), width=80, **options)
    with steps(console) as step:
        step("fetching", None)
        for done in (0.0, 0.01, 0.55, 0.58, 1.0):
            step("compiling", done)
    return console.file.getvalue()


def test_lines_for_each_step_and_each_tenth(monkeypatch):
    monkeypatch.setattr(progress_bar, "PATIENCE", 0)
    lines = said().splitlines()
    assert lines[:2] == ["fetching", "compiling: 0 %"] and len(lines) == 4
    assert lines[2].startswith("compiling: 50 %, about ") and lines[3] == "compiling: 100 %"


def test_what_is_quick_says_each_step_once():
    assert said().splitlines() == ["fetching", "compiling: 0 %"]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_bar_on_a_terminal_unless_quiet(quiet):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with steps(console, quiet) as step:
        step("compiling", 0.5)
    assert ("compiling" in console.file.getvalue()) is not quiet


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "1 second"),
        (1.2, "1 second"),
        (44, "44 seconds"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (3600, "60 minutes"),
    ],
)
def test_a_duration_is_told_in_seconds_or_minutes(seconds, words):
    assert progress_bar._duration(seconds) == words


def test_the_time_of_other_work_is_counted_anew(monkeypatch):
    times = iter((0, 100, 100, 110))
    monkeypatch.setattr(progress_bar, "PATIENCE", 0)
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(times))
    console = Console(file=io.StringIO(), width=80)
    with steps(console) as step:
        for what, done in (("copying", 0.0), ("copying", 1.0), ("compiling", 0.0), ("compiling", 0.5)):
            step(what, done)
    assert console.file.getvalue().splitlines()[-1] == "compiling: 50 %, about 10 seconds left"


def test_the_bar_of_other_work_is_not_finished():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with steps(console) as step:
        step("copying", 1.0)
        step("compiling", 0.0)
        shown = console.file.getvalue()
        step("compiling", 0.1)
    last = console.file.getvalue()[len(shown) :]
    assert "compiling" in last and "-:--:--" in last
