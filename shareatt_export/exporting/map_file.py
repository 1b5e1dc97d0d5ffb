"""Attention maps in JSON files: {"source_heads": [[...], ...]}, a list for each layer, a number for each query head.

The numbers are those of AttentionMap.sources. Other keys, like those that a search writes beside it, are ignored.
"""

import json
from pathlib import Path

from ..errors import BadInput, BadSpans
from ..model.attention_map import AttentionMap, check

KEY = "source_heads"


def read_map(path: Path, dense: AttentionMap) -> AttentionMap:
    """Return the map of a file for this dense model. Raises BadInput if it cannot be read, BadSpans for a bad map."""
    try:
        data = json.loads(path.read_bytes())
        rows = tuple(tuple(row) for row in data[KEY])
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", path=path) from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"is not a JSON file with a list '{KEY}' of lists", path=path, field="--map") from None
    expected = tuple(map(len, dense.sources))
    if tuple(map(len, rows)) != expected or not all(type(head) is int for row in rows for head in row):
        reason = f"the model has {len(expected)} layers of {max(expected)} query heads, with a whole number for each"
        raise BadInput(reason, path=path, field=KEY)
    found = AttentionMap(dense.n_head_kv, rows)
    try:
        check(found)
    except BadSpans as error:
        raise BadSpans(error.reason, path=path, field=error.field) from None
    return found
