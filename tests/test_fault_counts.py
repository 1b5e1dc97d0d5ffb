"""A run of all tests fails if a fault class has too few passing cases, with and without workers."""

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def few(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder of tests with one case of class A, which needs more."""
    pytester.makeini("[pytest]\ntestpaths = .\nmarkers = fault(kind)")
    pytester.makepyfile(test_it="import pytest\n\n@pytest.mark.fault('A')\ndef test_a_case():\n    pass")
    return pytester


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
@pytest.mark.parametrize("marks", ["", "not slow and not real", "not real"])
def test_a_run_of_all_tests_needs_the_cases(few, marks, workers):
    result = few.runpytest_subprocess("-p", "tests.support.fault_counts", "-m", marks, *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("A GGUF container * 1 cases * 1 passed, * TOO FEW")


@pytest.mark.parametrize("chosen", [["-k", "case"], ["-m", "fault"], ["test_it.py"]], ids=" ".join)
def test_a_run_of_some_tests_does_not(few, chosen):
    result = few.runpytest_subprocess("-p", "tests.support.fault_counts", *chosen)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*TOO FEW*")
