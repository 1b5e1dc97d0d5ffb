"""The metadata keys that the exporter reads and writes."""

KEY_ALIGNMENT = "general.alignment"
KEY_NO, KEY_COUNT, KEY_TENSORS = "split.no", "split.count", "split.tensors.count"

PREFIX = "shareatt."  # of the keys below
KEY_FORMAT_VERSION = "shareatt.format_version"
KEY_SPANS = "shareatt.spans"
KEY_EXPORTER = "shareatt.exporter"
KEY_SOURCE_BLAKE3 = "shareatt.source.blake3"
KEY_FIT = "shareatt.fit"  # how weights were fitted: align, refit, heal, mlp
KEY_FIT_TEXT = "shareatt.fit.text.sha256"
KEY_FIT_TENSORS = "shareatt.fit.tensors"  # names of the tensors that the fit changed
KEY_FIT_SHA256 = "shareatt.fit.sha256"  # SHA-256 of each of these tensors before any quantisation
KEY_HEAL = "shareatt.heal"  # JSON: the settings of the healing, and what it reached on held-out windows
KEY_SOURCE_HEADS = "shareatt.source_heads"  # the map of heads, as the heads of the dense model are numbered
VERSION_LAYERS, VERSION_HEADS = 1, 2  # format versions: a map of layers, a map of heads


def key_source_layers(arch: str) -> str:
    """Return the key of the source map, an array with one int32 per layer."""
    return f"{arch}.attention.shared_attn.source_layers"


def key_source_heads(arch: str) -> str:
    """Return the key of the map of heads, an array with one int32 per layer and query head."""
    return f"{arch}.attention.shared_attn.source_heads"
