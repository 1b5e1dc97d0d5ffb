"""Where a search over KV groups ends: what it makes smaller, and how small, or how much that may cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadInput
from ..formats.gguf_header import Header
from ..model.attention_map import AttentionMap
from ..model.costs import bits_per_weight, decode_bytes, read_weights, saved_parameters
from ..model.facts import Facts
from .request import GroupSearchRequest

Size = Callable[[AttentionMap], float]  # what moves save adds up


@dataclass(frozen=True)
class Goal:
    """The size is to be at most `most`; or, as small as it can be while the map costs at most `max_cost`."""

    most: float = 0.0
    max_cost: float = math.inf

    @property
    def is_cost(self) -> bool:
        return self.max_cost < math.inf

    def limit(self, size: float) -> float:
        """Return the size that maps which are to be better than one of this size must not exceed."""
        return size if self.is_cost else self.most

    def rank(self, size: float, cost: float) -> tuple[float, float]:
        """Return a number for each of two maps that meet the goal; the better map has the lower one."""
        return (size, cost) if self.is_cost else (cost, size)


def decode_reads(header: Header, facts: Facts, depth: int) -> Size:
    """Return the bytes that are read to decode one token after `depth` others, as a size; they limit its speed."""
    n_bytes, bytes_of_weight = read_weights(header).n_bytes, bits_per_weight(header) / 8

    def size(found: AttentionMap) -> float:
        return decode_bytes(facts, found, n_bytes - bytes_of_weight * saved_parameters(facts, found), depth)

    return size


def aim(request: GroupSearchRequest, header: Header, facts: Facts) -> tuple[Size, Goal]:
    """Return what the search makes smaller, and where it ends.

    Raises BadInput unless the request names one end, and one that the dense model does not meet already.
    """
    if request.n_ends != 1:
        raise BadInput("name one of --save, --kv-bytes, --max-kl and --speedup", path=request.model)
    if request.max_kl is not None:
        return facts.kv_bytes_per_token, Goal(max_cost=request.max_kl)
    if request.speedup is not None:
        size = decode_reads(header, facts, request.decode_at)
        return size, Goal(most=size(facts.attention) / request.speedup)
    dense = facts.kv_bytes_per_token(facts.attention)
    kv_bytes = request.kv_bytes if request.kv_bytes is not None else round(dense * (1 - (request.save or 0)))
    if kv_bytes >= dense:
        raise BadInput(f"a token takes {dense} already", path=request.model, field=f"--kv-bytes {kv_bytes}")
    return facts.kv_bytes_per_token, Goal(most=kv_bytes)
