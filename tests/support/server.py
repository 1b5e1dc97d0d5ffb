"""HTTP servers of language models as child processes."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

PORT = "PORT"  # placeholder in a command, replaced by a free port


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def post(self, path: str, **question: object) -> Any:
        """Post `question` as JSON, and return the JSON of the answer. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            self.url + path, json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def openai(self) -> openai.OpenAI:
        """Return a client of the OpenAI package for this server."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(*command: object, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a server that answers /v1/models, wait until it does, and stop it after the block.

    Its output goes to the file `log`. Raises AssertionError with the end of it if the server exits early.
    """
    port = free_port()
    arguments = [str(port if part is PORT else part) for part in command]
    with log.open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env=env)
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_for(f"{server.url}/v1/models", process, log)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except (urllib.error.URLError, ConnectionError):  # the server does not listen yet, or is loading the model
            time.sleep(0.1)
        else:
            return
