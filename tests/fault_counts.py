"""How many cases of each class of faults there are and pass, printed at the end of a run; hooks for conftest.py.

A module or test says which class it is of: pytest.mark.fault("A"). A test is one case; one that goes through many says
how many with record_property("cases", n).
"""

from collections import Counter

import pytest

CLASSES = {  # name and number of cases that there must be at least
    "A": ("GGUF container", 60),
    "B": ("truncation", 900),
    "C": ("mutation", 3000),
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
            properties = dict(getattr(report, "user_properties", ()))  # a module that cannot be imported has none
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
