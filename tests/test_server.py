"""`shareatt-export serve` with an SA model, asked by the real OpenAI client; two slots with a stream each."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from .server import PORT, Server, serving
from .test_export import export

N_CTX = 512  # in two slots of 256


@pytest.fixture(scope="module")
def server(demo_dense, built, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    out = export(demo_dense, folder / "shared.gguf")
    options = [
        "-t",
        1,
        "-tb",
        1,
        "-c",
        N_CTX,
        "-np",
        2,
        "--no-kv-unified",
        "--context-shift",
        # who shares a batch changes the last bits of f16 weights, and the best two tokens of this model can be as close
        *("-ctk", "f32", "-ctv", "f32"),
        "--slot-save-path",
        folder,
    ]
    command = [sys.executable, "-m", "shareatt_export.cli", "serve", out, "--port", PORT, "--", *options]
    with serving(*command, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.openai()


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


def test_a_saved_slot_goes_on_in_another(server):
    """The text that slot 0 would have gone on with, from its file, without a look at the prompt but its last token."""

    def complete(prompt, slot, n):
        question = {"prompt": prompt, "id_slot": slot, "n_predict": n, "temperature": 0, "ignore_eos": True}
        return server.post("/completion", **question, return_tokens=True)

    prompt = server.post("/tokenize", content="class Reader:\n    def read(self, path):\n")["tokens"]
    so_far = prompt + complete(prompt, 0, 24)["tokens"]
    saved = server.post("/slots/0?action=save", filename="slot")
    expected = complete(so_far, 0, 24)
    complete("import something else\n", 1, 4)
    restored = server.post("/slots/1?action=restore", filename="slot")
    assert restored["n_restored"] == saved["n_saved"] == len(so_far) - 1  # the last one is not decoded yet
    again = complete(so_far, 1, 24)
    assert again["timings"]["prompt_n"] == 1 and again["tokens"] == expected["tokens"]
