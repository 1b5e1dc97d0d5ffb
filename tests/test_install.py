"""The wheels of this project, installed in a new environment outside the repository."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.parity import TOLERANCE, nmse
from tests.support.server import PORT, serving

LOGITS = """
import sys
from pathlib import Path
import numpy as np
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Model, Token
lib = load(runtime.require().python, Path(sys.argv[1]))
with Model(lib, Path("out.gguf")) as model, Context(model, False, n_ctx=64, type_k=0, type_v=0) as context:
    np.save(sys.argv[2], context.decode([Token(5 + i, i) for i in range(40)]))
"""
ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "CCACHE_DIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE")
COMPILERS = ("cmake", "ninja", "make", "cc", "c++", "gcc", "g++", "clang", "git", "zig")


@dataclass(frozen=True)
class Shell:
    """Runs commands in a folder, without the variables of this process except KEPT and `variables`."""

    folder: Path
    variables: Mapping[str, object] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return kept | {name: str(value) for name, value in self.variables.items()}

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), cwd=self.folder, env=self.env, capture_output=True, text=True)

    def output(self, *command: object) -> str:
        """Return what the command prints. Raises AssertionError if it fails."""
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the tool."""
    folder = tmp_path_factory.mktemp("wheel")
    Shell(folder).output(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (wheel,) = folder.glob("shareatt_export-*.whl")
    return wheel


def environment(folder: Path, *requirements: object) -> Path:
    """Make a virtual environment and return the folder of its programs."""
    shell, programs = Shell(folder), folder / "venv" / "bin"
    shell.output(sys.executable, "-m", "venv", folder / "venv")
    shell.output(programs / "python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, *requirements)
    return programs


@pytest.mark.slow
def test_an_installed_package_builds_its_runtime_exports_and_runs(wheel, tmp_path):
    tool = environment(tmp_path, f"shareatt-export[hf,build] @ file://{wheel}") / "shareatt-export"
    output = Shell(tmp_path, {"SHAREATT_EXPORT_HOME": tmp_path / "home"}).output
    output(tool, "runtime", "build")
    output(tool, tiny_models.DEMO, "--spans", "6-9", "-o", "out.gguf")
    assert output(tool, "run", "out.gguf", "-p", "def ", "-n", 8, "--", "--temp", 0).startswith("def ")
    assert str(tmp_path / "home") in output(tool, "runtime", "status", "--json")


@pytest.fixture(scope="module")
def runtime_wheel(wheel, tmp_path_factory):
    """The wheel of the runtime for this machine, built as a release builds it."""
    folder = tmp_path_factory.mktemp("runtime-wheel")
    python = environment(folder, f"shareatt-export[build] @ file://{wheel}", "ziglang") / "python"
    platform = f"linux-{os.uname().machine}"
    script = ROOT / "scripts" / "build_runtime_wheels.py"
    return Path(Shell(folder).output(python, script, "--platform", platform, "-o", folder).strip())


@pytest.fixture(scope="module")
def installed(wheel, runtime_wheel, tmp_path_factory):
    """A shell where both wheels are installed, without a compiler, in a folder with the SA file out.gguf."""
    folder = tmp_path_factory.mktemp("installed")
    programs = environment(folder, f"shareatt-export[hf] @ file://{wheel}", runtime_wheel)
    assert not [name for name in COMPILERS if shutil.which(name, path=str(programs))]
    shell = Shell(folder, {"PATH": programs, "SHAREATT_EXPORT_HOME": folder / "home"})
    shell.output("shareatt-export", tiny_models.DEMO, "--spans", "6-9", "-o", "out.gguf", "--outtype", "F32")
    return shell


@pytest.fixture(scope="module")
def programs(installed):
    """The folder of the installed runtime's programs."""
    return Path(installed.output("shareatt-export", "runtime", "path").strip())


@pytest.mark.slow
def test_without_a_compiler_it_runs_and_evaluates(installed):
    text = installed.output("shareatt-export", "run", "out.gguf", "-p", "def ", "-n", 8, "--", "--temp", 0)
    assert text.startswith("def ") and len(text) > len("def \n")
    options = ("--text", tiny_models.DEMO / "heldout.txt", "--ctx", 128, "--windows", 2)
    assert "perplexity" in installed.output("shareatt-export", "eval", tiny_models.DEMO, "out.gguf", *options)
    doctor = installed.output("shareatt-export", "doctor")
    assert "installed: llama.cpp" in doctor and not re.search(r"\[missing\] +(C\+\+|cmake|git|runtime)", doctor)
    assert not (installed.folder / "home").exists()


@pytest.mark.slow
def test_without_a_compiler_it_quantises(installed):
    installed.output("shareatt-export", tiny_models.DEMO, "--spans", "6-9", "-o", "q4_0.gguf", "--outtype", "Q4_0")
    assert "layers 7, 8 and 9 reuse" in installed.output("shareatt-export", "inspect", "q4_0.gguf")


@pytest.mark.slow
def test_the_programs_answer_errors_instead_of_dying(installed, programs):
    """An exception of one copy of the C++ library cannot be caught in another."""
    completion = (programs / "llama-completion", "-m", "out.gguf", "-p", "def ", "-n", 4, "-no-cnv")
    for wrong, message in ((("--no-such-option",), "invalid argument"), (("--json-schema", '{"type":'), "json-schema")):
        done = installed.run(*completion, *wrong)
        assert done.returncode == 1 and message in done.stderr
    command = (programs / "llama-server", "-m", installed.folder / "out.gguf", "--port", PORT)
    with serving(*command, log=installed.folder / "server.log", env=installed.env) as server:
        for body in (b'{"prompt": ', b'{"prompt": 5}', b'{"prompt": "a", "json_schema": {"type": "nonsense"}}'):
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(f"{server.url}/v1/completions", body), timeout=60)
            assert b"unknown error" not in refused.value.read(), body
        assert server.post("/v1/completions", prompt="def ", max_tokens=4)["usage"]["completion_tokens"] == 4


@pytest.mark.slow
def test_every_variant_of_the_cpu_backend_gives_the_same_logits(installed, programs, tmp_path):
    """A variant that this processor cannot run is not loaded."""
    variants = set(programs.glob("libggml-cpu-*.so"))
    logits = {}
    for module in sorted(variants):
        name = module.stem.removeprefix("libggml-cpu-")
        alone, out = tmp_path / name, tmp_path / f"{name}.npy"
        alone.mkdir()
        for library in {*programs.glob("*.so")} - variants | {module}:
            (alone / library.name).symlink_to(library)
        done = installed.run("python", "-c", LOGITS, alone, out)
        if done.returncode == 0:
            logits[name] = np.load(out)
        else:
            assert "no CPU backend found" in done.stderr, done.stderr
    expected = logits.pop("x64" if os.uname().machine == "x86_64" else "armv8.0_1")
    assert logits
    for name, measured in logits.items():
        assert nmse(measured, expected) < TOLERANCE["f32"], name
