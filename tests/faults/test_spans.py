"""Values of --spans that cannot be parsed or do not fit a model of 12 layers."""

import pytest

from tests.support import small_gguf

pytestmark = pytest.mark.fault("G")

UNREAD = "cannot be read; use A-B, S:F-G, S:F+G or every:K, separated by commas"
AFTER = "each follower must come after its source and after the one before it"
TEXTS = {
    "": f"span '': {UNREAD}",
    " ": f"span '': {UNREAD}",
    ",": f"span '': {UNREAD}",
    "late": f"span 'late': {UNREAD}",
    "automatic": f"span 'automatic': {UNREAD}",
    "6-": f"span '6-': {UNREAD}",
    "-9": f"span '-9': {UNREAD}",
    "6--9": f"span '6--9': {UNREAD}",
    "6 - 9": f"span '6 - 9': {UNREAD}",
    "6\u20139": f"span '6\u20139': {UNREAD}",
    "٦-٩": f"span '٦-٩': {UNREAD}",
    "6-9\n": None,  # spaces around a span are ignored
    "0x6-9": f"span '0x6-9': {UNREAD}",
    "6.0-9": "span '6.0-9': group 6.9 is out of range; layer 6 has groups 0-1",
    "+6-9": f"span '+6-9': {UNREAD}",
    "6-9,": f"span '': {UNREAD}",
    "[6, 9]": f"span '[6': {UNREAD}",
    '{"6": 9}': f"span '{{\"6\": 9}}': {UNREAD}",
    "6:": f"span '6:': {UNREAD}",
    ":6-9": f"span ':6-9': {UNREAD}",
    "6:7:8": f"span '6:7:8': {UNREAD}",
    "6:7+": f"span '6:7+': {UNREAD}",
    "1-1" + "0" * 20: f"span '1-1{'0' * 20}': {UNREAD}",
    "9-6": "span '9-6': reversed; write 6-9",
    "7": "span '7': one layer shares nothing; write 7-8 or 7:8",
    "7-7": "span '7-7': one layer shares nothing; write 7-8 or 7:8",
    "10-12": "span '10-12': layer 12 is out of range; this model has layers 0-11",
    "0-999999": "span '0-999999': layer 12 is out of range; this model has layers 0-11",
    "0:999999": "span '0:999999': layer 999999 is out of range; this model has layers 0-11",
    "12:3": "span '12:3': layer 12 is out of range; this model has layers 0-11",
    "2-5,5-7": "spans '2-5' and '5-7': overlap in layer 5",
    "2-5,2-5": "spans '2-5' and '2-5': overlap in layer 2",
    "2:5,3-5": "spans '2:5' and '3-5': overlap in layer 5",
    "5-7,1-2": "spans '5-7' and '1-2': not in ascending order",
    "6:4": f"span '6:4': {AFTER}",
    "6:6": f"span '6:6': {AFTER}",
    "6:8+7": f"span '6:8+7': {AFTER}",
    "6:8+8": f"span '6:8+8': {AFTER}",
    "every:": f"span 'every:': {UNREAD}",
    "every:0": "spans 'every:0': the block size must be 2 to 12 for this model",
    "every:1": "spans 'every:1': the block size must be 2 to 12 for this model",
    "every:13": "spans 'every:13': the block size must be 2 to 12 for this model",
    "every:2,6-9": f"span 'every:2': {UNREAD}",
    "6-9\x1b[2J": f"span '6-9\\x1b[2J': {UNREAD}",
}
PREVIOUS = {
    "0-3": "span '0-3': layer 0 has no previous layer to reuse",
    "3-4,5-6": "spans '2-4' and '4-6': overlap in layer 4",
    "10-12": "span '10-12': layer 12 is out of range; this model has layers 0-11",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(run, refuses, tmp_path, text):
    dense, message = small_gguf.write_dense(tmp_path / "dense.gguf"), TEXTS[text]
    if message is None:
        assert run(dense, "--spans", text, "--dry-run").status == 0
    else:
        assert refuses(dense, "--spans", text, "-o", tmp_path / "out.gguf") == f"Error: {message}"


@pytest.mark.parametrize("text", PREVIOUS)
def test_texts_of_the_papers_code(refuses, tmp_path, text):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    error = refuses(dense, "--source", "previous", "--spans", text, "-o", tmp_path / "out.gguf")
    assert error == f"Error: {PREVIOUS[text]}"


def test_a_million_layers_a_thousand_times(refuses, tmp_path):
    """Such spans must be refused without much memory."""
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    error = refuses(dense, "--spans", ",".join(["0-999999"] * 10_000), "-o", tmp_path / "out.gguf")
    assert "span '0-999999': layer 12 is out of range" in error
