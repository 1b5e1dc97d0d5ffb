"""The identity of a model's weights: a BLAKE3 hash that an SA file records about its dense model.

BLAKE3 is as hard to forge as SHA-256, and several times as fast, which decides how long an export takes.
"""

import re
import struct
from collections.abc import Mapping

from blake3 import blake3

from ..errors import damaged
from ..system.streams import Advance, nothing
from .gguf_header import Header, TensorInfo
from .gguf_keys import KEY_SOURCE_BLAKE3, key_source_heads, key_source_layers
from .transfer import transfer


def tensors_blake3(header: Header, advance: Advance = nothing) -> str:
    """Return the identity of the dense model: BLAKE3 over name, type, shape and BLAKE3 of every tensor, in order.

    For an SA file that records the identity of its dense model, return that; else read and hash all tensors.
    Raises BadInput if the record is damaged.
    """
    if (known := recorded_blake3(header)) is not None:
        return known
    return own_blake3(header, advance)


def own_blake3(header: Header, advance: Advance = nothing) -> str:
    """Return the identity of the tensors in the file itself, SA or dense, after reading and hashing them all."""
    return combined_blake3(header, transfer(header.tensors.values(), hashes=True, advance=advance))


def recorded_blake3(header: Header) -> str | None:
    """Return the identity that an SA file records, None for a dense file. Raises BadInput if it is damaged."""
    arch = header.text("general.architecture")
    if (
        header.metadata.keys().isdisjoint((key_source_layers(arch), key_source_heads(arch)))
        or KEY_SOURCE_BLAKE3 not in header.metadata
    ):
        return None
    if not re.fullmatch("[0-9a-f]{64}", known := header.text(KEY_SOURCE_BLAKE3)):
        raise damaged(header.path, KEY_SOURCE_BLAKE3, "expected 64 hexadecimal digits")
    return known


def combined_blake3(header: Header, digests: Mapping[TensorInfo, bytes]) -> str:
    """Return the identity of a model, from the BLAKE3 hash of each of its tensors."""
    digest = blake3()
    for info in header.tensors.values():
        name = info.name.encode()
        digest.update(struct.pack(f"<Q{len(name)}sI{len(info.shape)}Q", len(name), name, info.type, *info.shape))
        digest.update(digests[info])
    return digest.hexdigest()
