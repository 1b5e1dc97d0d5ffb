"""Pytest hooks that count the cases of each fault class, and print the counts and times at the end of a run.

A module or test names its class with pytest.mark.fault("A"). A test is one case; a test with more cases gives their
number with record_property("cases", n). A run of all tests fails if a class has fewer passing cases than its minimum in
CLASSES. conftest.py imports the hooks.
"""

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

ALL_BUT = {"", "not slow", "not real"}  # what -m may leave out of a run of all tests


@dataclass
class Count:
    """Cases of one class so far, and the time that they took."""

    cases: int = 0
    passed: int = 0
    seconds: float = 0


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Counts(config))


def pytest_itemcollected(item: pytest.Item) -> None:
    if mark := item.get_closest_marker("fault"):
        item.user_properties.append(("fault", mark.args[0]))


class Counts:
    """The hooks that count. With pytest-xdist, the process that starts the workers has the reports of all."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.of = {kind: Count() for kind in CLASSES}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a report of the setup, call or teardown of a test."""
        properties = dict(report.user_properties)
        if kind := properties.get("fault"):
            count = self.of[str(kind)]
            count.seconds += report.duration
            if report.when == "call" or report.failed:
                cases = int(str(properties.get("cases", 1)))
                count.cases += cases
                count.passed += cases * report.passed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._few():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        few = self._few()
        if any(count.cases for count in self.of.values()):
            terminalreporter.section("faults")
            for kind, (name, wanted) in CLASSES.items():
                count = self.of[kind]
                line = f"{kind} {name:24} {count.cases:5} cases {count.passed:5} passed, {wanted:4} wanted"
                terminalreporter.line(f"{line} {count.seconds:5.0f} s" + ("  TOO FEW" if kind in few else ""))
            terminalreporter.line(f"{sum(count.seconds for count in self.of.values()):57.0f} s")

    def _few(self) -> set[str]:
        """Return the classes with fewer passing cases than their minimum, if the run was asked for all tests."""
        if not _is_whole(self.config):
            return set()
        return {kind for kind, (_, wanted) in CLASSES.items() if self.of[kind].passed < wanted}


def _is_whole(config: pytest.Config) -> bool:
    """Return whether the run was asked for all tests but those that need an option, or for more."""
    option = config.option
    chosen = option.keyword or not set(option.markexpr.split(" and ")) <= ALL_BUT or config.getoption("lf", False)
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen and not option.collectonly
