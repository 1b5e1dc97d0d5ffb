"""The types of weights and of KV caches that users can choose."""

# fmt: off
# the types of llama-quantize (QUANT_OPTIONS), each with its number in general.file_type (llama_ftype in llama.h)
WEIGHT_TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
    "Q2_K_S": 21, "Q2_0": 41, "Q1_0": 40, "IQ4_NL": 25, "IQ4_XS": 30, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37,
    "TQ1_0": 36, "MXFP4_MOE": 38,
}
# fmt: on
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

CACHE_TYPES = (
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q5_1",
    "q5_0",
    "q4_1",
    "q4_0",
    "iq4_nl",
)  # of llama.cpp's -ctk and -ctv


def weight_type(name: str) -> str:
    """Return the key of WEIGHT_TYPES, or AUTO, for a name in any case or an alias. Raises ValueError."""
    upper = ALIASES.get(name.upper(), name.upper())
    if upper not in ("AUTO", *WEIGHT_TYPES):
        raise ValueError(f"'{name}' is not one of auto, {', '.join(WEIGHT_TYPES)}")
    return upper
