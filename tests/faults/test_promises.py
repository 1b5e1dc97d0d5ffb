"""Promises of SECURITY.md that no other test checks: the files that an export opens, and chat templates."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shareatt_export.formats.gguf_encode import raw_string
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf, tiny_models
from tests.support.exports import export

ROOT = Path(__file__).parent.parent.parent

# Python runs this sitecustomize.py when it starts, also in the converter's process.
AUDIT = """
import os, sys
log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def look(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        say("writes" if args[2] & WRITES else "reads", args[0])
    elif event in ("os.link", "os.rename"):
        say("writes", args[1])
    elif event in ("os.remove", "os.rmdir", "os.mkdir"):  # the name may be relative to an open folder
        folder = os.readlink(f"/proc/self/fd/{args[-1]}") if args[-1] >= 0 else ""
        say("writes", os.path.join(folder, os.fsdecode(args[0])))
    elif event in ("os.truncate", "os.chmod") and not isinstance(args[0], int):
        say("writes", args[0])
    elif event in ("socket.connect", "socket.getaddrinfo", "os.system"):
        say(event, "")

def say(what, path):
    os.write(log, what.encode() + b"\\t" + os.path.abspath(os.fsencode(path)) + b"\\n")

sys.addaudithook(look)
if any(word.endswith("convert_hf_to_gguf.py") for word in sys.orig_argv):
    say("hub is offline: " + os.environ.get("HF_HUB_OFFLINE", "0"), "")
"""


def opened(tmp_path: Path, *arguments: object) -> list[tuple[str, Path]]:
    """Return the files that an export into tmp_path / out reads and writes, and its network access, as (kind, path)."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AUDIT)
    (tmp_path / "out").mkdir()
    env = {"PYTHONPATH": str(tmp_path / "site"), "AUDIT_LOG": str(tmp_path / "log"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "shareatt_export", *map(str, arguments), "-o", str(tmp_path / "out" / "out.gguf")]
    # if a test has imported torch, an environment variable names the cache of torch
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    subprocess.run(command, env=inherited | env, check=True, capture_output=True)
    lines = (tmp_path / "log").read_text(errors="surrogateescape").splitlines()
    return [(what, Path(path)) for what, _, path in (line.partition("\t") for line in lines)]


@pytest.mark.parametrize("kind", ["GGUF", "checkpoint"])
def test_an_export_writes_beside_its_output_alone_and_asks_no_network(built, tmp_path, kind):
    model = tiny_models.DEMO if kind == "checkpoint" else small_gguf.write_dense(tmp_path / "dense.gguf")
    seen = opened(tmp_path, model, "--spans", "6-9")
    assert {what for what, _ in seen} == {"reads", "writes"} | (
        {"hub is offline: 1"} if kind == "checkpoint" else set()
    )
    written = {path for what, path in seen if what == "writes"}
    assert any(path.name == "out.gguf" for path in written)
    elsewhere = {path for path in written if not path.is_relative_to(tmp_path / "out")}
    assert elsewhere <= {Path("/dev/null")}, elsewhere
    assert any(path.is_relative_to(model) for what, path in seen if what == "reads")


def test_a_chat_template_is_bytes(tmp_path):
    """The template is copied byte for byte, even if no renderer could parse or run it."""
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% endif %}\x00{{ 1 / 0 }}"
    dense = small_gguf.with_metadata(
        small_gguf.write_dense(tmp_path / "a.gguf"), tmp_path / "b.gguf", tokenizer__chat_template=raw_string(template)
    )
    out = read_header(export(dense, tmp_path / "out.gguf"))
    assert out.metadata["tokenizer.chat_template"].raw == raw_string(template).raw


def test_the_tests_that_security_md_names_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}" in (ROOT / path).read_text(), (path, name)
