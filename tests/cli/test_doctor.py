"""`doctor` on a machine that lacks something: it names what is missing and the command that installs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = """
import importlib.metadata as metadata, sys
version = metadata.version
def lacking(name):
    if name in {missing!r}:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = lacking
from shareatt_export.cli.main import main
sys.argv = ["shareatt-export", "doctor", *{options!r}]
main()
"""


def doctor(env, *options, missing=()):
    script = WITHOUT.format(missing=missing, options=options)
    command = [sys.executable, "-c", script]
    inherited = {name: os.environ[name] for name in ("HOME", "SHAREATT_EXPORT_HOME", "LANG") if name in os.environ}
    done = subprocess.run(command, env=inherited | env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps(text):
    return [line.split("  #")[0].strip() for line in text.partition("Next steps:\n")[2].splitlines()]


def test_nothing_is_missing(built):
    text = doctor({"PATH": os.environ["PATH"]})
    assert "Nothing is missing." in text and str(built.bin) in text and "[missing]" not in text


def test_no_compiler_and_no_runtime(tmp_path):
    """With an empty PATH, only the programs beside the Python interpreter are found."""
    text = doctor({"PATH": str(tmp_path), "SHAREATT_EXPORT_HOME": str(tmp_path)})
    found = steps(text)
    assert "shareatt-export runtime build" in found
    assert any("g++" in step for step in found) and any("git" in step for step in found)
    assert not list(tmp_path.iterdir())


def test_no_compiler_but_a_runtime(built, tmp_path):
    text = doctor({"PATH": str(tmp_path)})
    assert "the runtime is ready, so it is not needed" in text and steps(text) == []


@pytest.mark.parametrize(("package", "extra"), [("torch", "hf"), ("transformers", "hf"), ("matplotlib", "plot")])
def test_no_extra(built, package, extra):
    text = doctor({"PATH": os.environ["PATH"]}, missing=(package,))
    assert steps(text) == [f"pip install 'shareatt-export[{extra}]'"]
    assert f"{package} not installed" in text


def test_no_home(tmp_path):
    text = doctor({"PATH": os.environ["PATH"], "HOME": "", "SHAREATT_EXPORT_HOME": str(tmp_path / "none")})
    assert "shareatt-export runtime build" in steps(text)


def test_as_json(built):
    data = json.loads(doctor({"PATH": os.environ["PATH"]}, "--json"))
    assert {finding["state"] for finding in data["findings"]} <= {"ok", "missing", "information"}
    assert {"Python", "runtime", "C++ compiler", "extra [hf]", "processor"} <= {f["subject"] for f in data["findings"]}
