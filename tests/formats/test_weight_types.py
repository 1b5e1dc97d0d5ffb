"""The weight types, compared with the help of llama-quantize."""

import re
import subprocess

from shareatt_export.formats.weight_types import ALIASES, WEIGHT_TYPES
from shareatt_export.llamacpp import runtime


def test_the_types_are_those_of_llama_quantize(built):
    text = subprocess.run([runtime.tool("llama-quantize"), "--help"], capture_output=True, text=True).stdout
    known = re.findall(r"^ +\d+  or  (\w+)", text, re.MULTILINE)
    assert {*known} == {*WEIGHT_TYPES, *ALIASES}
    assert all(f"alias for {ALIASES[name]}" in text for name in ALIASES)
    numbers = {name: int(n) for n, name in re.findall(r"^ +(\d+)  or  (\w+)", text, re.MULTILINE)}
    assert all(number == numbers[name] for name, number in WEIGHT_TYPES.items())
