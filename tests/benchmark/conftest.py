"""A small dense model and its export, which the tests of this folder measure."""

import pytest

from shareatt_export.model.synthetic import ModelShape, write_random
from tests.support.exports import export

SHAPE = ModelShape(n_layer=12, n_embd=128, n_head=4, n_head_kv=2, head_dim=32, n_ff=128, n_vocab=64)


@pytest.fixture(scope="module")
def files(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_random(folder / "dense.gguf", SHAPE)
    return folder / "dense.gguf", export(folder / "dense.gguf", folder / "shared.gguf")  # spans 6-9
