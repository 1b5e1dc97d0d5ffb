"""The demo model with exchangeable weights, for the tests of this folder."""

import pytest

from shareatt_export.fitting.trial_model import TrialModel
from shareatt_export.formats.gguf_reader import read_header


@pytest.fixture(scope="module")
def trial_model(demo_dense, built):
    with TrialModel(built, read_header(demo_dense)) as trial_model:
        yield trial_model
