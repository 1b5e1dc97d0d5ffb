"""Which runtime is in use: a package shareatt_export_runtime, which pip installs, is found before a built one."""

import json

import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.diagnosis import diagnose
from shareatt_export.llamacpp.pin import patch_id, pin


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a runtime whose runtime.json has the given fields, and returns its folder."""
    monkeypatch.syspath_prepend(tmp_path / "site-packages")

    def install(**fields):
        folder = tmp_path / "site-packages" / runtime.INSTALLED_PACKAGE
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "bin").mkdir()
        (folder / "bin" / "llama-bench").write_text("#!/bin/sh\n")  # lists no devices
        (folder / "bin" / "llama-bench").chmod(0o755)
        record = {"llama_cpp": pin().llama_cpp_commit, "source": "a wheel", "patch": patch_id(), "abi": pin().abi}
        (folder / "runtime.json").write_text(json.dumps(record | {"amx_disabled": True} | fields))
        return folder

    return install


def finding(subject):
    (found,) = (finding for finding in diagnose() if finding.subject == subject)
    return found


def test_it_is_found_before_a_built_one(run, built, install):
    assert built.origin == "built"
    folder = install()
    assert runtime.require().origin == "installed"
    assert runtime.tool("llama-server") == folder / "bin" / "llama-server"
    assert runtime.require().python == folder / "python"
    assert runtime.converter() == folder / "llama.cpp" / "convert_hf_to_gguf.py"
    assert runtime.require_built() == built
    assert run("runtime", "path").stdout == f"{folder / 'bin'}\n"
    status = json.loads(run("runtime", "status", "--json").stdout)
    assert (status["origin"], status["path"], status["ready"]) == ("installed", str(folder / "bin"), True)
    assert "installed, ready in" in " ".join(run("runtime", "status").stdout.split())


def test_a_checkout_brings_its_own_converter(install, tmp_path):
    install()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "llama-graph.cpp").touch()
    assert runtime.converter(tmp_path) == tmp_path / "convert_hf_to_gguf.py"


@pytest.mark.parametrize("fields", [{"patch": "0123456789ab"}, {"abi": 0}])
def test_one_of_another_patch_is_refused_and_not_replaced(run, built, install, fields):
    folder = install(**fields)
    with pytest.raises(RuntimeProblem, match="install the shareatt-export-runtime of this version, or 'pip uninstall"):
        runtime.require()
    with pytest.raises(RuntimeProblem):
        runtime.converter()
    assert runtime.require_built() == built
    found = {"patch": patch_id(), "abi": pin().abi} | fields
    reason = f"{folder}: has patch {found['patch']} with ABI {found['abi']}, and this version needs patch {patch_id()}"
    assert reason in run("runtime", "path").error
    assert json.loads(run("runtime", "status", "--json").stdout)["ready"] is False
    assert finding("runtime").state == "missing" and str(folder) in finding("runtime").detail


def test_one_without_a_record_is_refused(install):
    (install() / "runtime.json").unlink()
    with pytest.raises(RuntimeProblem, match="has patch None"):
        runtime.require()


def test_doctor_misses_no_compiler(install, monkeypatch, tmp_path):
    folder = install()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CXX", raising=False)
    assert finding("C++ compiler").state == finding("git").state == "information"
    assert finding("runtime").state == "ok"
    assert finding("runtime").detail.startswith("installed: ") and str(folder) in finding("runtime").detail


def test_bench_compares_built_ones(run, install, demo_dense, tmp_path, monkeypatch):
    """A speed of an installed runtime beside one of the user's own compiler would compare two compilers."""
    install()
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path))
    done = run("bench", demo_dense, demo_dense)
    assert done.error.endswith("is not built yet; run 'shareatt-export runtime build'")
