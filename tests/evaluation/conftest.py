"""An SA model of the demo model, for the tests of this folder."""

import pytest

import shareatt_export


@pytest.fixture(scope="module")
def shared(demo_dense, tmp_path_factory):
    return shareatt_export.export(demo_dense, "6-9", tmp_path_factory.mktemp("shared") / "sa.gguf").files[0]
