"""The command line: exit status, error line, stdout, and the acceptance commands."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shareatt_export
from shareatt_export.formats.gguf_encode import raw_string
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.pin import patch_id, pin
from tests.support import small_gguf, tiny_models

MAP = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf")


# ---------------------------------------------------------------- the acceptance commands


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_export_and_inspect_the_demo_model(run, demo_dense, tmp_path, kind):
    out = tmp_path / "out.gguf"
    done = run(tiny_models.DEMO if kind == "checkpoint" else demo_dense, "--spans", "6-9", "-o", out)
    assert (done.status, done.stdout) == (0, f"{out}\n")
    assert "layer 6 computes; layers 7, 8 and 9 reuse its attention weights" in done.stderr
    seen = json.loads(run("inspect", out, "--json").stdout)
    assert seen["source_layers"] == MAP and seen["shared_attention"] is True
    names = list(read_header(out).tensors)
    assert not [n for n in names if n.split(".")[1] in ("7", "8", "9") and n.split(".")[2] in ("attn_q", "attn_k")]
    assert len(names) == len(read_header(demo_dense).tensors) - 6


def test_three_ways_to_say_the_same(run, demo_dense, tmp_path):
    written = []
    for i, spans in enumerate((["6-9"], ["6:7-9"], ["7-9", "--source", "previous"])):
        out = tmp_path / f"{i}.gguf"
        assert run(demo_dense, "--spans", *spans, "-o", out).status == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]


def test_relative_paths(run, tmp_path, monkeypatch):
    """The converter runs in another working directory than the command, so paths must be resolved first."""
    shutil.copytree(tiny_models.DEMO, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    done = run("model", "--spans", "6-9", "-o", "out.gguf")
    assert (done.status, done.stdout) == (0, "out.gguf\n"), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out.gguf"}


def test_bad_paths(run, dense, tmp_path):
    folder, existing, out = tmp_path / "folder", tmp_path / "existing.gguf", tmp_path / "out.gguf"
    folder.mkdir()
    existing.write_bytes(b"old")
    not_gguf = tmp_path / "text.gguf"
    not_gguf.write_text("some text")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for model, output, message in [
        (tmp_path / "none", out, f"{tmp_path / 'none'}: no such file or folder"),
        (folder, out, f"{folder}: not a model: neither a GGUF file nor a folder with a config.json"),
        (not_gguf, out, f"{not_gguf}: magic: not a GGUF file (it starts with b'some')"),
        (dense, existing, f"{existing}: exists already; use --force to overwrite it"),
        (dense, dense, f"{dense}: is the input itself; name another output"),
        (dense, tmp_path / "no" / "out.gguf", f"{tmp_path / 'no' / 'out.gguf'}: the folder {tmp_path / 'no'} does not"),
    ]:
        done = run(model, "--spans", "6-9", "-o", output)
        assert (done.status, done.stdout) == (1, "") and done.error.startswith(f"Error: {message}"), done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert run(dense, "--spans", "6-9", "-o", dense, "--force").status == 1


NAME = re.compile(  # the parts of the GGUF naming convention that these models have
    r"(?P<BaseName>[A-Za-z][A-Za-z0-9]*)-(?P<SizeLabel>\d+(\.\d+)?[KMB])-(?P<FineTune>[A-Za-z0-9-]+)"
    r"-(?P<Version>v\d+(\.\d+)*)-(?P<Encoding>\w+)\.gguf"
)


def test_in_a_folder_the_file_gets_its_name_by_the_convention(run, dense, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    done = run(dense, "--spans", "6:8+9", "-o", folder, "--no-card")
    (written,) = folder.iterdir()
    assert (done.status, done.stdout) == (0, f"{written}\n")
    name = NAME.fullmatch(written.name)
    assert name and (name["BaseName"], name["FineTune"], name["Encoding"]) == ("Small", "SA6-8-9", "F32")
    again = run(dense, "--spans", "6:8+9", "-o", folder, "--no-card")
    assert again.error == f"Error: {written}: exists already; use --force to overwrite it"


@pytest.mark.parametrize(
    "arguments", [[], ["--spans", "6-9"], ["-o", "out.gguf"], ["--spans", "6-9", "-o", "x", "--source", "next"]]
)
def test_usage_is_status_2(run, dense, arguments):
    done = run(dense, *arguments)
    assert done.status == 2 and done.error and done.stdout == ""


# ---------------------------------------------------------------- reports


def test_dry_run_prints_the_plan_and_writes_nothing(run, dense, tmp_path):
    done = run(dense, "--spans", "6-9", "--dry-run")
    assert done.status == 0 and done.stderr == ""
    for text in (
        "6-9",
        "layer 6 computes",
        "6 tensors dropped, 72.00 KiB",
        "KV cache at 128 tokens",
        "-12.5 %",
        "needs: llama.cpp",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == [dense]


def test_json_reports(run, dense, tmp_path):
    out = tmp_path / "out.gguf"
    plan = json.loads(run(dense, "--spans", "6-9", "--dry-run", "--json").stdout)
    done = json.loads(run(dense, "--spans", "6-9", "-o", out, "--json").stdout)
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    outputs = [{"file": str(out), "bytes": out.stat().st_size, "sha256": sha256}]
    assert done == plan | {key: done[key] for key in ("source_blake3", "verified_bytes")} | {"outputs": outputs}
    assert plan["file_bytes"] == [out.stat().st_size] and plan["source_layers"] == MAP
    (span,) = plan["spans"]
    assert (span["source"], span["followers"]) == (6, [7, 8, 9])
    assert span["dropped_tensors"] == [f"blk.{i}.attn_{x}.weight" for i in (7, 8, 9) for x in "qk"]
    seen = json.loads(run("inspect", out, "--json").stdout)
    assert seen["source_blake3"] == done["source_blake3"] and [seen["file_bytes"]] == plan["file_bytes"]
    assert seen["kv_bytes_per_token"] == plan["kv_bytes_per_token"]["after"]
    checked = json.loads(run("verify", out, "--against", dense, "--json").stdout)
    assert checked["ok"] is True and checked["bytes"] == plan["weight_bytes"]["after"]


def test_a_span_with_one_digit_does_not_claim_the_tensors_of_two(run, dense):
    plan = json.loads(run(dense, "--spans", "0-1,10-11", "--dry-run", "--json").stdout)
    assert [span["dropped_tensors"] for span in plan["spans"]] == [
        ["blk.1.attn_q.weight", "blk.1.attn_k.weight"],
        ["blk.11.attn_q.weight", "blk.11.attn_k.weight"],
    ]


def test_quiet_says_only_where(run, dense, tmp_path):
    out = tmp_path / "out.gguf"
    done = run(dense, "--spans", "6-9", "-o", out, "-q")
    assert (done.status, done.stdout, done.stderr) == (0, f"{out}\n", "")


def test_inspect_a_dense_file(run, dense):
    seen = json.loads(run("inspect", dense, "--json").stdout)
    assert seen["source_layers"] == list(range(12)) and seen["shared_attention"] is False and seen["spans"] == []
    assert "dense: every layer computes its own" in run("inspect", dense).stdout


def test_verify_fails_with_status_1(run, dense, tmp_path):
    out = tmp_path / "out.gguf"
    run(dense, "--spans", "6-9", "-o", out)
    other = small_gguf.write_dense(tmp_path / "other.gguf", bias=True)
    done = run("verify", out, "--against", other)
    assert done.status == 1 and done.error.startswith(f"Error: {out}: tensor ")
    assert run("verify", tmp_path / "none", "--against", dense).error == f"Error: {tmp_path / 'none'}: no such file"


def test_help_and_version_load_nothing_slow():
    script = (
        "import sys; from shareatt_export import cli; assert not {'torch', 'numpy', 'gguf', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    done = subprocess.run([sys.executable, "-m", "shareatt_export", "--version"], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"shareatt-export, version {shareatt_export.__version__}",
        f"llama.cpp {pin().llama_cpp_commit}, patch {patch_id()}, ABI {pin().abi}",
    ]


def test_the_shell_completes_types():
    env = os.environ | {"_SHAREATT_EXPORT_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    env["COMP_WORDS"] = "shareatt-export export --outtype q4"
    command = [shutil.which("shareatt-export", path=str(Path(sys.executable).parent)) or ""]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,Q4_K_M", "plain,Q4_K_S", "plain,Q4_1", "plain,Q4_0"]


# ---------------------------------------------------------------- the runtime's commands


def test_runtime_status_and_path(run, built):
    seen = json.loads(run("runtime", "status", "--json").stdout)
    assert seen["ready"] is True and seen["path"] == str(built.bin)
    assert run("runtime", "path").stdout == f"{built.bin}\n"
    assert all((built.bin / name).is_file() for name in runtime.TOOLS)


def test_build_is_idempotent(run, built):
    done = run("runtime", "build")
    assert (done.status, done.stdout, done.stderr) == (0, f"{built.bin}\n", "")


def test_without_a_runtime_the_next_step_is_named(run, dense, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "empty"))
    message = "Error: llama.cpp with Shared Attention is not built yet; run 'shareatt-export runtime build'"
    for arguments in (["runtime", "path"], ["run", dense, "-p", "x"], ["serve", dense]):
        done = run(*arguments)
        assert (done.status, done.error) == (1, message)
    seen = json.loads(run("inspect", dense, "--json").stdout)
    assert seen["runtime"]["ready"] is False


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"llama_cpp": "x"}'])
def test_a_broken_stamp_is_no_runtime(run, dense, tmp_path, monkeypatch, stamp):
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "home"))
    runtime.status().root.mkdir(parents=True)
    (runtime.status().root / "runtime.json").write_text(stamp)
    assert json.loads(run("inspect", dense, "--json").stdout)["runtime"]["ready"] is False
    assert run("inspect", dense).status == 0


def test_a_bad_checkout_harms_no_runtime(run, built, tmp_path):
    done = run("runtime", "build", "--llama-cpp", tmp_path / "typo")
    assert done.error == f"Error: {tmp_path / 'typo'}: not a llama.cpp checkout (src/llama-graph.cpp is missing)"
    assert runtime.status().ready and runtime.status().source.is_dir()


def test_names_of_strangers_cannot_command_the_terminal(run, dense, tmp_path):
    name = raw_string("\x1b]0;title\x07[bold]x")
    odd = small_gguf.with_metadata(dense, tmp_path / "odd.gguf", general__name=name)
    shown = run("inspect", odd).stdout
    assert "\x1b" not in shown and "?]0;title?[bold]x" in shown


def test_run_writes_python(demo_dense, built, tmp_path):
    """The dense demo model continues a function with an indented body that compiles line by line."""
    command = [sys.executable, "-m", "shareatt_export", "run", str(demo_dense), "-n", "48"]
    prompt = "import os\n\nclass Cache:\n    def __init__(self, size):\n"
    done = subprocess.run(
        [*command, "-p", prompt, "--", "--temp", "0"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    continued = done.stdout.split("size):")[1]
    assert continued.startswith(("\n        self.", "\n        super"))


def test_run_refuses_a_bad_file_itself(run, tmp_path):
    assert run("run", tmp_path / "none.gguf", "-p", "x").error == f"Error: {tmp_path / 'none.gguf'}: no such file"
