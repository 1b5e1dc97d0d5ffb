"""The source layers of a model of 12 layers with the span 6-9, and the metadata key that holds them."""

SOURCE_LAYERS_KEY = "llama.attention.shared_attn.source_layers"
SOURCE_LAYERS_ARGUMENT = SOURCE_LAYERS_KEY.replace(".", "__")  # the key as an argument of small_gguf.with_metadata
SOURCE_LAYERS = (0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11)
