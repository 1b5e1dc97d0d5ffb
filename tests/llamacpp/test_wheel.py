"""The wheel of llama-cpp-python with the patch, installed in a fresh environment."""

import json
import os
import subprocess
import sys

import pytest

from shareatt_export.llamacpp import wheel
from shareatt_export.llamacpp.pin import pin
from tests.support.exports import export

SAY = """
import importlib.metadata, json, sys, llama_cpp
llama = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
text = llama.create_completion("import os\\n\\ndef ", max_tokens=24, temperature=0)["choices"][0]["text"]
print(json.dumps([llama_cpp.__version__, text]))
"""


def test_the_folder_must_be_there(run, built, tmp_path):
    done = run("runtime", "wheel", "-o", tmp_path / "missing")
    assert (done.status, done.error) == (1, f"Error: {tmp_path}/missing: the folder for the wheel does not exist")


def test_the_version_tells_it_from_the_stock_one(tmp_path):
    from packaging.version import Version

    version = Version(wheel.version())
    assert version.public == pin().version and version.local.startswith("shareatt.")
    assert version > Version(pin().version)


@pytest.mark.slow
def test_a_fresh_environment_runs_sa_files(run, built, demo_dense, tmp_path):
    """Its logits there are those of the runtime's own bindings."""
    shared = export(demo_dense, tmp_path / "shared.gguf")
    done = run("runtime", "wheel", "-o", tmp_path, "--json")
    assert done.status == 0, done.stderr
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LLAMA_CPP_LIB_PATH")}
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", json.loads(done.stdout)["wheel"]], env=clean, check=True)

    def say(python, env):
        command = [python, "-c", SAY, shared]
        return json.loads(subprocess.run(command, env=env, cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout)

    version, text = say(python, clean)
    assert version == wheel.version() and len(text) > 24
    ours = {"PYTHONPATH": str(built.python), "LLAMA_CPP_LIB_PATH": str(built.bin)}
    assert say(sys.executable, clean | ours) == [pin().version, text]
