"""What every refusal must look like, and how many cases of each class of faults there are and pass.

A module says with `pytestmark = pytest.mark.fault("A")` which class it has. A test is one case; one that goes through
many says how many with record_property("cases", n).
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

CLASSES = {  # name and number of cases that there must be at least
    "A": ("GGUF container", 60),
    "B": ("truncation", 900),
    "C": ("mutation", 2000),
    "D": ("resource bombs", 10),
    "E": ("checkpoint", 45),
    "F": ("model", 35),
    "G": ("spans", 25),
    "H": ("non-finite values", 14),
    "I": ("output and interruption", 30),
    "J": ("C++ loader", 35),
    "K": ("state files", 16),
    "L": ("command line", 20),
    "M": ("runtime", 10),
}


def pytest_itemcollected(item: pytest.Item) -> None:
    if mark := item.get_closest_marker("fault"):
        item.user_properties.append(("fault", mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cases: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if "fault" in properties:
                cases[properties["fault"]] += properties.get("cases", 1)
                passed[properties["fault"]] += properties.get("cases", 1) * (outcome == "passed")
    if cases:
        terminalreporter.section("faults")
        for kind, (name, target) in CLASSES.items():
            below = "" if cases[kind] >= target else "  (not all were run)"
            terminalreporter.line(
                f"{kind} {name:24} {cases[kind]:5} cases {passed[kind]:5} passed, {target} wanted{below}"
            )


def files(folder: Path) -> dict[str, object]:
    """All that is in a folder, at any depth: what it is, its mode, when it was changed, and what is in it."""
    seen: dict[str, object] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        small = path.is_file() and not path.is_symlink() and stat.st_size < 1 << 25
        content = hashlib.sha256(path.read_bytes()).hexdigest() if small else stat.st_size
        seen[str(path.relative_to(folder))] = (stat.st_mode, stat.st_mtime_ns * path.is_file(), content)
    return seen


@pytest.fixture
def refuses(run: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """refuses(*arguments): one error line, status 1, and every file is as it was before."""

    def refuses(*arguments: object, status: int = 1) -> str:
        before = files(tmp_path)
        done = run(*arguments)
        assert done.status == status, done
        assert done.stdout == "" and files(tmp_path) == before
        return done.error

    return refuses
