"""Pytest hooks that count the cases of each fault class, and print the counts and times at the end of a run.

A module or test names its class with pytest.mark.fault("A"). A test is one case; a test with more cases gives their
number with record_property("cases", n). A run of all tests fails if a class has fewer passing cases than its minimum in
CLASSES. conftest.py imports the hooks.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest

CLASSES = {  # name, and minimum number of passing cases
    "A": ("GGUF container", 60),
    "B": ("truncation", 900),
    "C": ("mutation", 5000),
    "D": ("resource bombs", 10),
    "E": ("checkpoint", 45),
    "F": ("model", 35),
    "G": ("spans", 25),
    "H": ("non-finite values", 14),
    "I": ("output and interruption", 130),
    "J": ("C++ loader", 35),
    "K": ("state files", 16),
    "L": ("command line", 20),
    "M": ("runtime", 10),
}


@dataclass
class Count:
    """Cases of one class so far, and the time that they took."""

    cases: int = 0
    passed: int = 0
    seconds: float = 0


class Counts:
    """Counts of all classes, filled from the reports of pytest."""

    def __init__(self) -> None:
        self.of = {kind: Count() for kind in CLASSES}

    def take(self, report: pytest.TestReport) -> None:
        """Add a report of the setup, call or teardown of a test."""
        properties = dict(report.user_properties)
        if kind := properties.get("fault"):
            count = self.of[str(kind)]
            count.seconds += report.duration
            if report.when == "call" or report.failed:
                cases = int(str(properties.get("cases", 1)))
                count.cases += cases
                count.passed += cases * report.passed

    def few(self) -> Iterator[str]:
        """Yield the classes with fewer passing cases than their minimum."""
        return (kind for kind, (_, wanted) in CLASSES.items() if self.of[kind].passed < wanted)


COUNTS = pytest.StashKey[Counts]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = Counts()


def pytest_itemcollected(item: pytest.Item) -> None:
    if mark := item.get_closest_marker("fault"):
        item.user_properties.append(("fault", mark.args[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.config.stash[COUNTS].take(report)
    return report


def _whole(config: pytest.Config) -> bool:
    """Return whether the run was asked for all tests but the slow ones, or for more."""
    chosen = config.option.keyword or config.option.markexpr not in ("", "not slow") or config.getoption("lf", False)
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen and not config.option.collectonly


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _whole(session.config) and any(session.config.stash[COUNTS].few()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    few = set(counts.few()) if _whole(config) else set()
    if any(count.cases for count in counts.of.values()):
        terminalreporter.section("faults")
        for kind, (name, wanted) in CLASSES.items():
            count = counts.of[kind]
            line = f"{kind} {name:24} {count.cases:5} cases {count.passed:5} passed, {wanted:4} wanted"
            terminalreporter.line(f"{line} {count.seconds:5.0f} s" + ("  TOO FEW" if kind in few else ""))
        terminalreporter.line(f"{sum(count.seconds for count in counts.of.values()):57.0f} s")
