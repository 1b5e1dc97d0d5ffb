"""Models named by their hub id: the real huggingface_hub client with a local HTTP server in place of the hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support import tiny_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.name: path for path in tiny_models.DEMO.iterdir() if path.is_file()}


@dataclass
class Hub:
    """A local hub with org/demo (the demo model and a pickle, branch main), a gated model and a GGUF model."""

    url: str
    asked: list[str] = field(default_factory=list)

    def run(self, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "shareatt_export", *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=home)


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            path = self.path.split("?")[0]
            if "org/gated" in path:
                self.answer(403, X_Error_Code="GatedRepo")
            elif "org/none" in path:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif re.fullmatch(f"/api/models/org/demo(/revision/(main|{COMMIT}))?", path):
                self.answer(200, self.about([*FILES, "pytorch_model.bin"]), Content_Type="application/json")
            elif re.fullmatch("/api/models/org/ggufs(/revision/main)?", path):
                self.answer(200, self.about(["model-Q4_K_M.gguf"]), Content_Type="application/json")
            elif path == f"/api/models/org/demo/tree/{COMMIT}":
                self.answer(200, self.tree([*FILES, "pytorch_model.bin"]), Content_Type="application/json")
            elif path == f"/api/models/org/ggufs/tree/{COMMIT}":
                self.answer(200, self.tree(["model-Q4_K_M.gguf"]), Content_Type="application/json")
            elif path.startswith("/api/models/"):
                self.answer(404, X_Error_Code="RevisionNotFound")
            else:
                name = path.rsplit("/", 1)[-1]
                data = FILES[name].read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def about(self, names: list[str]) -> bytes:
            files = [{"rfilename": name} for name in names]
            return json.dumps({"id": "org/demo", "sha": COMMIT, "siblings": files}).encode()

        def tree(self, names: list[str]) -> bytes:
            sizes = {name: FILES[name].stat().st_size if name in FILES else 1 for name in names}
            files = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            return json.dumps(files).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def test_a_hub_id_gives_the_file_of_the_folder(run, hub, tmp_path):
    done = hub.run(tmp_path, "org/demo", "--spans", "6-9", "-o", tmp_path / "hub.gguf", "--card")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'hub.gguf'}\n"), done.stderr
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert 'base_model: "org/demo"' in (tmp_path / "README.md").read_text()
    seen = len(hub.asked)
    again = hub.run(tmp_path, "org/demo", "--spans", "6-9", "-o", tmp_path / "2.gguf", "--revision", COMMIT)
    assert again.returncode == 0, again.stderr
    assert not any("model.safetensors" in path for path in hub.asked[seen:])  # it is in the cache
    data = (tmp_path / "hub.gguf").read_bytes()
    assert (tmp_path / "2.gguf").read_bytes() == data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["org/none"], "org/none: no such folder here or model on the hub; if it is private, 'hf auth login'"),
        (["org/gated"], "org/gated: gated on the hub; ask for access on its page, then 'hf auth login'"),
        (["org/demo", "--revision", "old"], "org/demo: --revision: 'old' is not on the hub"),
        (["org/ggufs"], "org/ggufs: no config.json; for a GGUF of it, 'hf download org/ggufs FILE.gguf' and name the"),
        (["org/demo/x"], "org/demo/x: no such file or folder"),
        (["none.gguf"], "none.gguf: no such file or folder"),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, arguments, message):
    done = hub.run(tmp_path, *arguments, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1 and errors[0].startswith(f"Error: {message}"), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.gguf"))


def test_without_a_network(hub, tmp_path):
    hub.url = "http://127.0.0.1:1"
    done = hub.run(tmp_path, "org/demo", "--spans", "6-9", "-o", tmp_path / "out.gguf")
    assert (
        done.returncode == 1 and "org/demo: no such folder here, and it cannot be fetched from the hub: " in done.stderr
    )
