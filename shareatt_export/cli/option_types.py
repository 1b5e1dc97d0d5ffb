"""The types of command line options. Nothing here takes time to import: the shell's completion asks often."""

import re
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..formats.weight_types import CACHE_TYPES, WEIGHT_TYPES, weight_type

FILE = click.Path(path_type=Path)
CACHE_TYPE = click.Choice(CACHE_TYPES)


class OutPath(click.Path):
    """A path to write, as text: a slash at its end says that it is a folder, and pathlib would drop it."""

    def __init__(self) -> None:
        super().__init__(path_type=str)


class OutFolder(click.Path):
    """A folder to write in, which is made where it does not exist."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)


class Depths(click.ParamType[tuple[int, ...]]):
    """Ascending numbers of tokens."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
            self.fail(f"'{value}' is not a list of depths like 0,4096,16384", param, ctx)
        return tuple(sorted(set(map(int, parts))))


class GpuLayers(click.ParamType[int]):
    """A number of layers, or all of them: -1."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return -1
        if not (str(value).isascii() and str(value).isdigit() and len(str(value)) < 8):
            self.fail(f"'{value}' is not a number of layers, or all", param, ctx)
        return int(value)


class Percent(click.ParamType[float]):
    """A part of a whole in percent, above 0 and below 100; as a fraction from here on."""

    name = "N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,6})?)%", str(value))
        if not match or not float(match[1]):
            self.fail(f"'{value}' is not a percentage like 10%", param, ctx)
        return float(match[1]) / 100


class OutType(click.ParamType[str]):
    """A weight type of llama-quantize, in either case, or auto; in upper case from here on."""

    name = "TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return weight_type(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in ("auto", *WEIGHT_TYPES) if name.startswith(incomplete.upper())]


class SplitSize(click.ParamType[int]):
    """A size as llama-gguf-split takes it: megabytes (10^6 bytes) or gigabytes (10^9 bytes)."""

    name = "N(M|G)"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch("([1-9][0-9]{0,8})([MG])", str(value))
        if not match:
            self.fail(f"'{value}' is not a size like 500M or 2G", param, ctx)
        return int(match[1]) * {"M": 10**6, "G": 10**9}[match[2]]
