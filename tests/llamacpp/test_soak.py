"""A soak test of a few seconds: every kind of turn works, and the logits of a fixed prompt stay the same."""

from tests.support import tiny_models
from tests.support.exports import export
from tests.support.server import PORT, serving
from tests.support.soak import OPTIONS, TURNS, soak


def test_eight_clients_at_once(demo_dense, built, tmp_path):
    model = export(demo_dense, tmp_path / "shared.gguf")
    command = [built.bin / "llama-server", "-m", model, "--port", PORT, *OPTIONS, "--slot-save-path", tmp_path]
    text = (tiny_models.DEMO / "heldout.txt").read_text()
    with serving(*command, log=tmp_path / "log") as server:
        done = soak(server, [text], seconds=12, clients=8, seed=3)
    assert done.errors == [] and done.before == done.after
    assert set(done.turns) == {turn.__name__ for turn in TURNS}
