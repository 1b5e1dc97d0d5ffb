"""A refit solves all layers in one pass, or each in a pass of its own where the windows do not fit into memory."""

import os

import pytest

import shareatt_export
from shareatt_export.fitting import features
from shareatt_export.fitting.fit import FitRequest, fit
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.tensor_copies import float_rows
from shareatt_export.formats.texts import read_corpus
from shareatt_export.llamacpp.runtime import P_BYTES
from shareatt_export.model.facts import read_facts
from shareatt_export.plan.make_plan import make_plan
from shareatt_export.plan.projections import Fitting
from tests.support import parity, tiny_models
from tests.support.exports import spans_map

HELDOUT = tiny_models.DEMO / "heldout.txt"


def done(dense, built):
    header = read_header(dense)
    facts = read_facts(header)
    how = Fitting(False, True, "0" * 64)
    plan = make_plan(header, facts, spans_map(facts, "2-5,7-9"), how)
    found = fit(plan, FitRequest(how, read_corpus([HELDOUT]), n_ctx=64, n_windows=8), built)
    weights = {copy.name: float_rows(raw, copy.type) for copy, raw in found.changes.items()}
    return {follower.layer: follower for follower in found.followers}, weights


@pytest.mark.parametrize("together", [1, 3], ids=["one window at a time", "three windows at a time"])
def test_one_pass_solves_what_a_pass_for_each_layer_solves(demo_f32, built, monkeypatch, together):
    followers, weights = done(demo_f32, built)
    per_token = 4608 + 4 * features.WIDTHS * 192
    monkeypatch.setattr(features, "MAX_BYTES", together * 64 * per_token)
    as_before, before = done(demo_f32, built)
    assert followers.keys() == as_before.keys() == {3, 4, 5, 8, 9}
    for layer, follower in followers.items():
        assert follower.ridge == as_before[layer].ridge and follower.error < follower.error_before
        assert follower.error_before == pytest.approx(as_before[layer].error_before, rel=2e-3), layer
        assert follower.error == pytest.approx(as_before[layer].error, rel=2e-3), layer
    assert all(parity.nmse(weights[name], before[name]) < 1e-3 for name in before)


def test_a_text_of_few_windows_does_not_make_it_worse(demo_dense, tmp_path, built):
    """Pieces of them are held out. With a ridge that the fitted tokens themselves chose, the KL was 0.45."""
    text = tmp_path / "short.txt"
    text.write_text(HELDOUT.read_text()[100_000:101_700])  # less than four windows
    (plain,) = shareatt_export.export(demo_dense, "6-9", tmp_path / "plain.gguf").files
    done = shareatt_export.export(demo_dense, "6-9", tmp_path / "fitted.gguf", refit=True, text=text)
    asked = {"text": HELDOUT, "n_ctx": 128, "n_windows": 8, "baselines": False}
    _, before, after = shareatt_export.evaluate(demo_dense, (plain, *done.files), **asked).scores
    assert after.kl.value < 0.9 * before.kl.value
    assert all(0.7 < follower.error / follower.error_before < 1 for follower in done.followers)


def test_the_memory_for_attention_weights_is_the_users_again(demo_f32, built, monkeypatch):
    """Only while it fits does the tool choose it."""
    monkeypatch.setenv(P_BYTES, "12345")
    done(demo_f32, built)
    assert os.environ[P_BYTES] == "12345"
    monkeypatch.delenv(P_BYTES)
    done(demo_f32, built)
    assert P_BYTES not in os.environ


def test_the_windows_are_computed_in_one_pass(demo_f32, built, monkeypatch):
    """Within its default memory for attention weights the runtime would split them."""
    seen = []
    read = features.FeatureReader.read

    def counted(reader, windows, take):
        def counting(layer, found):
            seen.append((layer, len(found)))
            return take(layer, found)

        read(reader, windows, counting)

    monkeypatch.setattr(features.FeatureReader, "read", counted)
    done(demo_f32, built)
    dense, shared = seen[:10], seen[10:]
    assert dense == shared == [(layer, 8 * 64) for layer in range(10)]
