"""`shareatt-export serve` with an SA model and the OpenAI client; two slots with a stream each."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.support.exports import export
from tests.support.server import PORT, Server, serving

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
        "--slot-save-path",
        folder,
    ]
    command = [sys.executable, "-m", "shareatt_export", "serve", out, "--port", PORT, "--", *options]
    with serving(*command, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.openai()


def chat(client: openai.OpenAI, text: str) -> tuple[str, float]:
    """Return the streamed answer, and the smallest difference between the best two tokens of a step, in nats."""
    stream = client.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": text}],
        stream=True,
        max_tokens=24,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},
    )
    answer, margins = "", []
    for choice in (part.choices[0] for part in stream if part.choices):
        answer += choice.delta.content or ""
        for token in choice.logprobs.content or () if choice.logprobs else ():
            first, second = token.top_logprobs
            margins.append(first.logprob - second.logprob)
    assert len(margins) == 24
    return answer, min(margins)


def test_two_chats_at_once_say_what_each_says_alone(client):
    """Other sequences in a batch change logits by up to 0.05, dense or SA, so each choice must be clearer than that."""
    texts = ["# Copyright", "print("]
    alone = [chat(client, text) for text in texts]
    assert alone[0][0] != alone[1][0] and min(margin for _, margin in alone) > 0.15
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda text: chat(client, text), texts))
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]


def test_a_context_shift_goes_on(client):
    """The text is longer than a slot: K of the sources is shifted; followers have no K."""
    answer = client.completions.create(
        model="any", prompt="import os\n\ndef ", max_tokens=400, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 400 > N_CTX / 2 and answer.choices[0].finish_reason == "length"


def test_a_saved_slot_goes_on_in_another(server):
    """The other slot continues from the file with the same text, and decodes only the last token of the prompt."""

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
