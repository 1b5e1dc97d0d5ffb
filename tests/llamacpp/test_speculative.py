"""Speculative decoding gives the text of the target model, whether the target or the draft shares attention."""

import pytest

from tests.support.exports import export
from tests.support.server import PORT, serving

PROMPT = "import os\n\nclass Reader:\n    def read(self, path):\n"


@pytest.fixture(scope="module")
def files(demo_dense, built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculative")
    return {"dense": demo_dense, "shared": export(demo_dense, folder / "shared.gguf"), "folder": folder}


def complete(built, files, target, *options):
    command = [
        built.bin / "llama-server",
        "-m",
        files[target],
        "--port",
        PORT,
        "-c",
        "512",
        "-np",
        "1",
        "-t",
        "1",
        "-tb",
        "1",
    ]
    with serving(*command, *options, log=files["folder"] / "log") as server:
        question = {"prompt": PROMPT, "n_predict": 64, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        answer = server.post("/completion", **question)
    return answer["tokens"], answer["timings"]


@pytest.fixture(scope="module")
def alone(built, files):
    """The tokens of each model without a draft."""
    tokens = {}
    for name in ("dense", "shared"):
        tokens[name], timings = complete(built, files, name)
        assert "draft_n" not in timings
    assert tokens["dense"] != tokens["shared"]
    return tokens


@pytest.mark.parametrize(("target", "draft"), [("shared", "dense"), ("dense", "shared")])
def test_a_draft_model_changes_nothing(built, files, alone, target, draft):
    """Some draft tokens are accepted and some are not, so that both caches are cut back."""
    tokens, timings = complete(built, files, target, "-md", files[draft], "--spec-type", "draft-simple", "-td", "1")
    assert 0 < timings["draft_n_accepted"] < timings["draft_n"]
    assert tokens == alone[target]


def test_a_draft_from_the_text_changes_nothing(built, files, alone):
    options = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 2, "--spec-ngram-simple-size-m", 4]
    tokens, timings = complete(built, files, "shared", *options)
    assert timings["draft_n"] > 0
    assert tokens == alone["shared"]
