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
def test_threads_are_passed_on(run, became, tmp_path, command):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    run(*command, dense, "--threads", 3)
    run(*command, dense, "--", "--threads", "5")
    run(*command, dense)
    first, second, third = (arguments for arguments, _ in became)
    assert first[first.index("--threads") + 1] == "3"
    assert second[second.index("--threads") + 1] == "5" and second.count("--threads") == 1
    assert "--threads" not in third


@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
@pytest.mark.parametrize("command", [["run", "-p", "x"], ["serve"]])
def test_threads_spin_shortly_at_barriers_unless_the_user_says_otherwise(
    run, became, monkeypatch, tmp_path, command, variables, spins
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run(*command, small_gguf.write_dense(tmp_path / "dense.gguf"))
    ((_, env),) = became
    assert env.get("GOMP_SPINCOUNT") == spins and env.get("OMP_WAIT_POLICY") == variables.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["serve"]])
def test_gpu_options_are_passed_on(run, became, tmp_path, command):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    run(*command, dense, "-ngl", "all", "--device", "Vulkan0")
    run(*command, dense, "--gpu-layers", 7)
    run(*command, dense)
    first, second, third = (arguments for arguments, _ in became)
    assert first[first.index("--gpu-layers") + 1] == "all" and first[first.index("--device") + 1] == "Vulkan0"
    assert second[second.index("--gpu-layers") + 1] == "7" and "--device" not in second
    assert "--gpu-layers" not in third and "--device" not in third


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["serve"]])
def test_kernels_for_a_dense_model(run, became, monkeypatch, tmp_path, command):
    monkeypatch.delenv("LLAMA_SHARED_ATTN_DENSE", raising=False)
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    run(*command, dense, "--sa-kernels")
    run(*command, dense)
    (arguments, with_kernels), (_, without) = became
    assert with_kernels["LLAMA_SHARED_ATTN_DENSE"] == "1" and "--sa-kernels" not in arguments
    assert "LLAMA_SHARED_ATTN_DENSE" not in without
