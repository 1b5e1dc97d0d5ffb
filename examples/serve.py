#!/usr/bin/env python3
"""Export the demo model, serve it with the patched llama-server, and ask it with the `openai` package.

python examples/serve.py [FOLDER]
"""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai

import shareatt_export

MODEL = Path(__file__).parent.parent / "tests" / "models" / "stdlib-5m"
SECONDS_TO_START = 300


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(client: openai.OpenAI, server: subprocess.Popen[bytes], prompt: str) -> str:
    """The server's completion; waits for a server that is still loading its model."""
    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            answer = client.completions.create(model="any", prompt=prompt, max_tokens=16, temperature=0)
            return answer.choices[0].text
        except (openai.APIConnectionError, openai.InternalServerError):
            if server.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.5)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (file,) = shareatt_export.export(MODEL, spans="6-9", out=folder / "sa.gguf", force=True).files
    port = str(free_port())
    command = [sys.executable, "-m", "shareatt_export", "serve", str(file), "--port", port]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        prompt = "def read_file(path):"
        print(prompt + ask(client, server, prompt))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
