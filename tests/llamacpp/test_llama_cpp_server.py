"""The OpenAI server of llama-cpp-python (python -m llama_cpp.server) on an SA file, with the runtime's library."""

import os
import sys

import pytest

from tests.support.exports import export
from tests.support.server import PORT, serving

PROMPT = "import os\n\nclass Reader:\n    def read(self, path):\n"


@pytest.fixture(scope="module")
def shared(demo_dense, built, tmp_path_factory):
    return export(demo_dense, tmp_path_factory.mktemp("llama_cpp") / "shared.gguf")


def complete(client):
    return client.completions.create(model="any", prompt=PROMPT, max_tokens=32, temperature=0).choices[0].text


def test_llama_cpp_server_says_what_llama_server_says(built, shared):
    path = os.pathsep.join(filter(None, [str(built.python), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"LLAMA_CPP_LIB_PATH": str(built.bin), "PYTHONPATH": path}
    options = ["--n_ctx", 256, "--n_threads", 1, "--n_threads_batch", 1, "--port", PORT]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", shared, *options]
    with serving(*command, log=shared.with_suffix(".log"), env=env) as server:
        client = server.openai()
        text = complete(client)
        messages = [{"role": "user", "content": "def read(path):"}]
        stream = client.chat.completions.create(model="any", messages=messages, stream=True, max_tokens=8)
        assert sum(bool(part.choices[0].delta.content) for part in stream) > 1
    options = ["-c", 256, "-t", 1, "-tb", 1, "--port", PORT]
    with serving(built.bin / "llama-server", "-m", shared, *options, log=shared.with_suffix(".log")) as server:
        assert text == complete(server.openai()) and len(text) > 32
