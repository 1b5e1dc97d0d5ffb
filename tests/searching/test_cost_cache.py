"""The file of measured costs of a search."""

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.searching.cost_cache import CostCache


def test_costs_are_remembered(tmp_path):
    path, asked = tmp_path / "state.json", []

    def cost(found):
        asked.append(found)
        return len(asked) / 10

    first = CostCache(path, {"text": "a"}, cost)
    assert first((0, 0)) == first((0, 0)) == 0.1 and first((0, 1)) == 0.2
    again = CostCache(path, {"text": "a"}, cost)
    assert again((0, 1)) == 0.2 and again((0, 0)) == 0.1 and again.n_measured == 0 and len(asked) == 2
    with pytest.raises(BadInput, match=r"state of another search \(text\)"):
        CostCache(path, {"text": "b"}, cost)
    path.write_text('{"costs": [[1]]}')
    with pytest.raises(BadInput, match="not the state of a search"):
        CostCache(path, {"text": "a"}, cost)
