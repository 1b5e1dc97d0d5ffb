"""Costs of maps are measured once, on no more windows than the comparison needs."""

import numpy as np
import pytest

from shareatt_export.errors import BadInput
from shareatt_export.searching.measured_costs import CostedMap, MeasuredCosts
from shareatt_export.searching.state import State
from tests.support.costs import maps_of

N_WINDOWS = 16


class Costs:
    """Costs that scatter over the windows; `asked` has each window that was measured of each map."""

    def __init__(self, true):
        rng = np.random.default_rng(0)
        self.windows = {each: cost * rng.uniform(0.9, 1.1, N_WINDOWS) for each, cost in true.items()}
        self.asked = []

    def __call__(self, source_layers, first, stop):
        self.asked += [(source_layers, window) for window in range(first, stop)]
        return list(self.windows[source_layers][first:stop])


@pytest.fixture
def costs():
    return Costs({each: 1.0 + i for i, each in enumerate(maps_of(6, 1))})


def test_the_best_are_measured_on_all_windows_and_the_worst_on_few(costs):
    measured = MeasuredCosts(State(None, {}), costs, N_WINDOWS, tuple)
    maps = list(costs.windows)
    found = measured.best(reversed(maps), 2)
    assert [each.map for each in found] == maps[:2]
    assert found[0] == CostedMap(maps[0], pytest.approx(costs.windows[maps[0]].mean()))
    n_windows = {each: sum(asked == each for asked, _ in costs.asked) for each in maps}
    assert n_windows[maps[0]] == N_WINDOWS and n_windows[maps[-1]] == measured.first_windows == 4
    assert len(costs.asked) < 0.5 * N_WINDOWS * len(maps)


def test_no_window_is_measured_twice(costs):
    measured = MeasuredCosts(State(None, {}), costs, N_WINDOWS, tuple)
    one = next(iter(costs.windows))
    assert measured.rough(one) == pytest.approx(costs.windows[one][:4].mean())
    measured.costed(one)
    measured.best(costs.windows, 1)
    assert len(costs.asked) == len(set(costs.asked))
    assert measured.n_measured == len(costs.windows)


def test_few_windows(costs):
    measured = MeasuredCosts(State(None, {}), costs, 2, tuple)
    assert measured.first_windows == 2 and len(measured.best(costs.windows, 3)) == 3
    assert MeasuredCosts(State(None, {}), costs, 1, tuple).best([], 3) == []


def test_what_was_measured_is_kept(costs, tmp_path):
    one = next(iter(costs.windows))
    first = MeasuredCosts(State(tmp_path / "state", {"text": "a"}), costs, N_WINDOWS, tuple)
    rough = first.rough(one)
    again = MeasuredCosts(State(tmp_path / "state", {"text": "a"}), costs, N_WINDOWS, tuple)
    assert again.rough(one) == rough and again.n_measured == 0 and len(costs.asked) == 4
    assert again.costed(one).cost == pytest.approx(costs.windows[one].mean()) and len(costs.asked) == N_WINDOWS


def test_the_state_of_another_search_is_refused(tmp_path):
    State(tmp_path, {"text": "a", "n_ctx": 8})
    with pytest.raises(BadInput, match=r"state of another search \(text\); remove it"):
        State(tmp_path, {"text": "b", "n_ctx": 8})


@pytest.mark.parametrize("name", ["settings.json", "costs.json", "arrays.npz"])
@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[[1]]", b"PK\x03\x04"])
def test_damaged_states_are_refused(tmp_path, name, content):
    State(tmp_path, {"text": "a"})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}: not the state of a search"):
        state = State(tmp_path, {"text": "a"})
        state.costs(), state.arrays()


def test_arrays_are_kept(tmp_path):
    state = State(tmp_path, {})
    assert state.arrays() is None
    state.save_arrays({"0-1 blk.1.attn_output.weight": np.arange(6, dtype=np.uint8).reshape(2, 3)})
    (found,) = State(tmp_path, {}).arrays().items()
    assert found[0] == "0-1 blk.1.attn_output.weight" and found[1].tolist() == [[0, 1, 2], [3, 4, 5]]
