"""`shareatt-export serve` with an SA model, asked by the real OpenAI client."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from .test_export import export

N_CTX = 512  # in two slots of 256


@pytest.fixture(scope="module")
def client(demo_dense, built, tmp_path_factory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("server")
    out = export(demo_dense, folder / "shared.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shareatt_export.cli", "serve", str(out), "--port", str(port)]
    command += ["--", "-c", str(N_CTX), "-np", "2", "--context-shift", "--no-kv-unified"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        wait_for(client, server, folder / "log")
        yield client
    finally:
        server.terminate()
        server.wait(30)


def wait_for(client: openai.OpenAI, server: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            client.models.list()
        except openai.APIError:  # not yet listening, or still loading
            time.sleep(0.1)
        else:
            return


def chat(client: openai.OpenAI, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    stream = client.chat.completions.create(
        model="any", messages=messages, stream=True, max_tokens=24, temperature=0, extra_body={"ignore_eos": True}
    )
    return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def test_two_chats_at_once_say_what_each_says_alone(client):
    texts = ["def read(path):", "import os\n\nclass Cache:"]
    alone = [chat(client, text) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda text: chat(client, text), texts))
    assert all(alone) and alone[0] != alone[1]
    assert together == alone


def test_a_context_shift_goes_on(client):
    """More tokens than a slot holds: K of the sources is shifted, followers have none to shift."""
    answer = client.completions.create(
        model="any", prompt="import os\n\ndef ", max_tokens=400, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 400 > N_CTX / 2 and answer.choices[0].finish_reason == "length"
