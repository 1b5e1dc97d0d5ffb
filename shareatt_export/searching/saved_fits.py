"""The fits of pairs of layers as named arrays, for the state of a search."""

from collections.abc import Mapping

import numpy as np

from ..formats.gguf_header import Header
from ..formats.tensor_copies import RawRows, TensorCopy
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from ..plan.projections import projections
from .pair_fits import PairFit
from .state import Arrays

ERRORS = "errors"  # rows of source, follower and error


def to_arrays(fits: Mapping[Pair, PairFit]) -> Arrays:
    """Return the errors, and each changed tensor under its pair and its name."""
    changes = {_name(pair, copy): raw for pair, fit in fits.items() for copy, raw in fit.changes.items()}
    return {ERRORS: np.array([[*pair, fit.error] for pair, fit in fits.items()]), **changes}


def from_arrays(arrays: Arrays, header: Header, facts: Facts) -> dict[Pair, PairFit]:
    """Return the fits that to_arrays() was given."""
    fits = {}
    for source, follower, error in arrays[ERRORS]:
        pair = Pair(int(source), int(follower))
        fits[pair] = PairFit(float(error), _changes(arrays, pair, header, facts))
    return fits


def _changes(arrays: Arrays, pair: Pair, header: Header, facts: Facts) -> dict[TensorCopy, RawRows]:
    tensors = projections(header, facts, pair.follower)
    copies = (tensors.v, tensors.v_bias, tensors.output)
    return {copy: arrays[_name(pair, copy)] for copy in copies if copy and _name(pair, copy) in arrays}


def _name(pair: Pair, copy: TensorCopy) -> str:
    return f"{pair.source}-{pair.follower} {copy.name}"
