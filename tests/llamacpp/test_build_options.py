"""Backends and CMake options of the runtime: what CMake gets, what is refused before a build, and what is kept."""

import json
import sys

import pytest

from shareatt_export.cli.runtime import BACKENDS as CHOICES
from shareatt_export.llamacpp import build as building
from shareatt_export.llamacpp import devices, runtime, source
from shareatt_export.llamacpp.build_options import BACKENDS, CPU, cmake_options, remember, remembered


@pytest.fixture
def toolkits(tmp_path, monkeypatch):
    """A PATH with nothing but a program for each backend that is asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for backend in BACKENDS.values():
        monkeypatch.delenv(backend.elsewhere, raising=False)

    def make(*names):
        for name in names:
            program = tmp_path / BACKENDS[name].program
            program.touch()
            program.chmod(0o755)

    return make


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """The options of each build, which compiles nothing, in a cache of its own."""
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "home"))
    compiled = []

    def compile_source(root, targets, no_amx, progress, build="build", options=()):
        compiled.append(tuple(options))
        (root / build / "bin").mkdir(parents=True, exist_ok=True)
        (root / build / "CMakeCache.txt").write_text("\n".join(options))

    monkeypatch.setattr(building, "compile_source", compile_source)
    monkeypatch.setattr(building, "copy_source", lambda target, llama_cpp, patched: target.mkdir(exist_ok=True))
    monkeypatch.setattr(building, "_install_and_test", lambda runtime, options, progress: False)
    return compiled


VULKAN = ("-DGGML_VULKAN=ON",)


def test_the_command_knows_every_backend():
    assert (CPU, *BACKENDS) == CHOICES


def test_what_cmake_gets(toolkits):
    toolkits("vulkan", "cuda")
    assert cmake_options(["vulkan", "cuda", "vulkan"], ["A=1", "B:PATH=/x=y"]) == (
        *VULKAN, "-DGGML_CUDA=ON", "-DA=1", "-DB:PATH=/x=y",
    )  # fmt: skip
    assert cmake_options([CPU]) == ()


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"metal"}))
def test_a_missing_toolkit_is_refused_before_the_build(run, toolkits, builds, name):
    done = run("runtime", "build", "--backend", name)
    assert done.status == 1 and BACKENDS[name].program in done.error and "; install " in done.error
    assert builds == [] and remembered() == ()
    toolkits(name)
    assert run("runtime", "build", "--backend", name).status == 0
    assert builds == [BACKENDS[name].options]


def test_metal_exists_on_macos_only(run, toolkits, builds, monkeypatch):
    toolkits("metal")
    monkeypatch.setattr(sys, "platform", "linux")
    assert "macOS only" in run("runtime", "build", "--backend", "metal").error
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cmake_options(["metal"]) == ("-DGGML_METAL=ON",)


@pytest.mark.parametrize("option", ["GGML_NATIVE", "=1", "A B=1", "BUILD_SHARED_LIBS=OFF", "GGML_RPC:BOOL=OFF"])
def test_a_bad_option_is_refused(run, builds, option):
    done = run("runtime", "build", "--cmake-option", option)
    assert done.status == 1 and "--cmake-option" in done.error and builds == []


def test_a_build_without_options_keeps_the_backend(run, toolkits, builds):
    toolkits("vulkan")
    assert run("runtime", "build").status == 0
    assert run("runtime", "build", "--backend", "vulkan").status == 0
    assert runtime.status().ready and runtime.options_of(runtime.status()) == VULKAN
    assert run("runtime", "build").status == 0  # nothing to do
    assert run("runtime", "build", "--backend", "vulkan").status == 0
    assert builds == [(), VULKAN]
    (runtime.status().root / "runtime.json").unlink()  # as a new version, or after an interruption
    assert run("runtime", "build").status == 0
    assert run("runtime", "build", "--backend", "cpu").status == 0
    assert builds == [(), VULKAN, VULKAN, ()] and remembered() == ()


def test_other_options_make_cmake_start_anew(run, builds):
    """CMake's cache would keep a backend that is not asked for any more."""
    assert run("runtime", "build", "--cmake-option", "A=1").status == 0
    cache, library = runtime.status().root / "build" / "CMakeCache.txt", runtime.status().bin / "libggml-a.so"
    library.touch()
    building._prepare_options(runtime.status(), ["-DA=1"])
    assert cache.exists() and library.exists() and runtime.status().ready
    building._prepare_options(runtime.status(), [])
    assert not cache.exists() and not library.exists() and not runtime.status().ready


def test_an_interrupted_build_goes_on_with_its_options(run, builds, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "compile_source", interrupted)
        assert run("runtime", "build", "--cmake-option", "A=1").status == 130
    assert not runtime.status().ready
    assert run("runtime", "build").status == 0 and builds == [("-DA=1",)]


def test_the_unpatched_library_is_built_for_the_same_devices(run, builds):
    assert run("runtime", "build", "--cmake-option", "A=1").status == 0
    assert run("runtime", "build", "--unpatched", "--cmake-option", "A=2").status == 2
    assert run("runtime", "build", "--unpatched").status == 0
    assert builds == [("-DA=1",), ("-DA=1",)]


def test_bench_compares_only_builds_for_the_same_devices(run, builds, tmp_path):
    assert run("runtime", "build").status == 0 and run("runtime", "build", "--unpatched").status == 0
    assert run("runtime", "build", "--cmake-option", "A=1").status == 0
    error = run("bench", tmp_path / "dense.gguf", tmp_path / "sa.gguf").error
    assert "for other devices" in error and "runtime build --unpatched" in error


def test_a_runtime_of_an_earlier_version_has_no_options(built):
    assert "options" not in built.built or isinstance(built.built["options"], list)
    old = runtime.RuntimeStatus(
        built.root, True, {name: built.built[name] for name in built.built if name != "options"}
    )
    assert runtime.options_of(old) == ()


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "null"])
def test_a_damaged_record_is_no_choice(builds, text):
    remember(VULKAN)
    (source.cache_dir() / "build-options.json").write_text(text)
    assert remembered() == ()


# ---------------------------------------------------------------- devices

LISTED = """Available devices:
  CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80000 MiB free)
  Vulkan1: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program in the place of llama-bench, with these outputs and status."""

    def make(out, status=0, err=""):
        path = tmp_path / "llama-bench"
        path.write_text(f"#!/bin/sh\nprintf '%s' '{out}'\nprintf '%s' '{err}' >&2\nexit {status}\n")
        path.chmod(0o755)
        monkeypatch.setattr(devices, "tool", lambda name: path)

    return make


def test_devices_are_what_the_program_lists(program, run, built):
    program(LISTED, err="ggml_cuda_init: found 1 CUDA devices\n")
    assert [device.name for device in devices.devices()] == ["CUDA0", "Vulkan1"]
    assert "NVIDIA H100" in run("runtime", "status").stdout
    assert json.loads(run("runtime", "status", "--json").stdout)["devices"][1]["description"].startswith("llvmpipe")
    assert "[ok]      GPU" in run("doctor").stdout
    program("Available devices:\n  (none)\n")
    assert devices.devices() == () and "the runtime sees none" in run("doctor").stdout


def test_a_driver_that_fails_is_reported(program, run, built):
    program("", 3, "no driver\n")
    assert "llama-bench --list-devices: no driver" in run("runtime", "status").error
    assert "cannot look for devices: llama-bench --list-devices: no driver" in run("doctor").stdout


def test_a_device_that_does_not_exist_is_refused(run, built, demo_dense):
    error = run("eval", demo_dense, demo_dense, "--device", "CUDA7").error
    assert "--device: the runtime sees no device 'CUDA7'; 'shareatt-export runtime status' lists" in error


def test_the_real_runtime_takes_the_options(run, built, demo_dense):
    done = run("eval", demo_dense, demo_dense, "--device", "none", "-ngl", "all", "--windows", "1", "--ctx", "16")
    assert done.status == 0, done.stderr
    assert run("eval", demo_dense, demo_dense, "-ngl", "-3").status == 2
