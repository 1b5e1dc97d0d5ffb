"""The contract of the command line: usage errors (status 2), errors (status 1), stdout and stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shareatt_export.formats.gguf_encode import raw_string
from tests.support import small_gguf

pytestmark = pytest.mark.fault("L")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf")


USAGE = {
    "nothing but a file": ([], "--spans"),
    "no output": (["--spans", "6-9"], "-o"),
    "no spans": (["-o", "out.gguf"], "--spans"),
    "another source": (["--spans", "6-9", "-o", "x", "--source", "next"], "--source"),
    "an unknown option": (["--spans", "6-9", "-o", "x", "--faster"], "--faster"),
    "an unknown type": (["--spans", "6-9", "-o", "x", "--outtype", "Q4_X"], "'Q4_X' is not one of auto, F32, F16"),
    "no threads": (["--spans", "6-9", "-o", "x", "--threads", "0"], "--threads"),
    "threads as text": (["--spans", "6-9", "-o", "x", "--threads", "many"], "--threads"),
    "a size of nothing": (["--spans", "6-9", "-o", "x", "--split-max-size", "0M"], "is not a size like 500M or 2G"),
    "two models": (["again.gguf", "--spans", "6-9", "-o", "x"], "again.gguf"),
    "an option without its value": (["--spans"], "--spans"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(refuses, dense, name):
    arguments, message = USAGE[name]
    assert message in refuses(dense, *arguments, status=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "x.gguf"],
        ["inspect"],
        ["eval", "x.gguf"],
        ["eval", "x.gguf", "y.gguf", "--ctx", "7"],
        ["bench", "x.gguf", "y.gguf", "--depths", "1,-2"],
        ["bench", "x.gguf", "y.gguf", "--ctk", "q9"],
        ["analyze", "x.gguf", "--reach", "0"],
        ["run", "x.gguf"],
        ["serve", "x.gguf", "--port", "http"],
        ["runtime", "burn"],
    ],
    ids=" ".join,
)
def test_usage_of_the_other_commands(refuses, arguments):
    refuses(*arguments, status=2)


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["analyze"], ["eval", "sound.gguf"], ["run", "-p", "x"], ["serve"], ["verify", "--against", "x"]],
    ids=lambda arguments: arguments[0],
)
def test_each_command_refuses_a_broken_file_itself(refuses, tmp_path, monkeypatch, built, arguments):
    """The refusal comes before the runtime is used: one line, without its log."""
    monkeypatch.chdir(tmp_path)
    small_gguf.write_dense(tmp_path / "sound.gguf")
    (tmp_path / "bad.gguf").write_bytes((tmp_path / "sound.gguf").read_bytes()[:4000])
    error = refuses(*arguments, "bad.gguf")
    assert "bad.gguf: " in error and "the file is damaged" in error


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["export", "--help"], ["runtime"]])
def test_help_is_no_error(run, arguments):
    done = run(*arguments)
    assert "Usage:" in done.stdout + done.stderr and "Error" not in done.stderr
    assert done.status == (0 if arguments and arguments != ["runtime"] else 2)


@pytest.mark.parametrize("name", ["with space.gguf", "line\nbreak.gguf", "ünïcödé.gguf", "-dash.gguf", "\udcff.gguf"])
def test_odd_names(run, tmp_path, monkeypatch, name):
    """Odd file names work; if the file does not exist, the error is still one line."""
    monkeypatch.chdir(tmp_path)
    small_gguf.write_dense(Path(name))
    done = run("export", "--spans", "6-9", "-o", f"./out {name}", "--", f"./{name}")
    assert done.status == 0 and Path(f"out {name}").is_file()
    done = run("export", "--spans", "6-9", "-o", "./x", "--", f"./none {name}")
    assert done.status == 1 and "no such file" in done.error and done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(dense):
    """A reader that closes the pipe early, as in 'shareatt-export ... | head -0'."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "shareatt_export", str(dense), "--spans", "6-9", "--dry-run"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def test_a_full_device_is_told(dense):
    command = [sys.executable, "-m", "shareatt_export", str(dense), "--spans", "6-9", "--dry-run", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_ascii_terminals(dense, tmp_path):
    odd = small_gguf.with_metadata(dense, tmp_path / "odd.gguf", general__name=raw_string("längs \u2028 \ud7ff"))
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "TERM": "dumb"}
    command = [sys.executable, "-m", "shareatt_export", "inspect", str(odd)]
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0 and done.stdout.isascii() and not done.stderr


def test_json_alone_on_stdout_and_one_error_on_stderr(run, dense, tmp_path):
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf", "--json")
    assert done.status == 0 and json.loads(done.stdout)["source_layers"][7] == 6
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf", "--json")
    assert (done.status, done.stdout) == (1, "") and "exists already" in done.error


def test_quiet_is_quiet_but_for_errors(run, dense, tmp_path):
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf", "-q")
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'out.gguf'}\n", "")
    done = run(dense, "--spans", "9-6", "-o", tmp_path / "2.gguf", "-q")
    assert done.stderr == "Error: span '9-6': reversed; write 6-9\n"
