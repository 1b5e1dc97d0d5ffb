"""The arguments and the environment that `run` and `serve` give to the programs of the runtime."""

import os

import pytest

from tests.support import small_gguf


@pytest.fixture
def became(monkeypatch):
    """Return the arguments and the environment of the program that replaced the process."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, env: calls.append((arguments, env)))
    return calls


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["serve"]])
def test_threads_sleep_at_barriers_unless_the_user_says_otherwise(run, became, monkeypatch, tmp_path, command):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run(*command, dense, "--threads", 3)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run(*command, dense, "--", "--threads", "5")
    (first, first_env), (second, second_env) = became
    assert first[first.index("--threads") + 1] == "3" and first_env["OMP_WAIT_POLICY"] == "passive"
    assert second[second.index("--threads") + 1] == "5" and second_env["OMP_WAIT_POLICY"] == "active"
    assert second.count("--threads") == 1
