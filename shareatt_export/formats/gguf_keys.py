"""The metadata keys that the exporter reads and writes itself."""

KEY_FORMAT_VERSION = "shareatt.format_version"


KEY_SPANS = "shareatt.spans"


KEY_EXPORTER = "shareatt.exporter"


KEY_SOURCE_SHA256 = "shareatt.source.sha256"


KEY_FIT = "shareatt.fit"  # how the followers' weights were fitted: align, refit


KEY_FIT_TEXT = "shareatt.fit.text.sha256"


KEY_FIT_TENSORS = "shareatt.fit.tensors"  # those whose bytes are not the dense file's


KEY_FIT_SHA256 = "shareatt.fit.sha256"  # of each of these, before it was quantised any further


FORMAT_VERSION = 1


def key_source_layers(arch: str) -> str:
    return f"{arch}.attention.shared_attn.source_layers"


KEY_ALIGNMENT = "general.alignment"


KEY_NO, KEY_COUNT, KEY_TENSORS = "split.no", "split.count", "split.tensors.count"
