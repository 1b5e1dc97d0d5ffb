"""The wheel of this project, installed in a new environment outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_models

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_package_builds_its_runtime_exports_and_runs(tmp_path):
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "CCACHE_DIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"SHAREATT_EXPORT_HOME": str(tmp_path / "home")}

    def call(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("shareatt_export-*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv")
    venv = tmp_path / "venv" / "bin"
    constraints = ROOT / "scripts" / "constraints.txt"
    call(venv / "pip", "install", "-q", "-c", constraints, f"shareatt-export[hf,build] @ file://{wheel}")
    tool = venv / "shareatt-export"
    call(tool, "runtime", "build")
    call(tool, tiny_models.DEMO, "--spans", "6-9", "-o", "out.gguf")
    assert call(tool, "run", "out.gguf", "-p", "def ", "-n", 8, "--", "--temp", 0).startswith("def ")
    status = call(tool, "runtime", "status", "--json")
    assert str(tmp_path / "home") in status
