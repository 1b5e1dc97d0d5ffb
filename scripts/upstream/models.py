"""The models for the tests: dense models, SA exports of each, and SA files that must be refused.

A new architecture needs a row in MODELS: a function that makes the dense file, and the spans of its exports.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shareatt_export.exporting.convert import converted
from tests.support import parity, small_gguf, tiny_models
from tests.support.exports import export
from tests.support.faults.bad_shared_files import BAD_FILES

SEED = "1"


@dataclass(frozen=True)
class Kitchen:
    """Makes the dense models in a folder."""

    folder: Path
    archs: Path  # the program test-llama-archs, which writes upstream's dummy models

    def demo(self) -> Path:
        with converted(tiny_models.DEMO, self.folder, "auto", None) as made:
            return made.replace(self.folder / "stdlib-5m.gguf")

    def tiny(self, heads: str, head_dim: int = tiny_models.HEAD_DIM) -> Path:
        return parity.make_case(heads, "f16", self.folder / f"{heads}-{head_dim}", head_dim).dense

    def sliding(self, arch: str) -> Path:
        source = tiny_models.save(tiny_models.build_sliding(arch), self.folder / arch)
        with converted(source, self.folder, "f16", None) as made:
            return made.replace(self.folder / f"{arch}.gguf")

    def fused(self) -> Path:
        return small_gguf.write_dense(self.folder / "fused.gguf", fused=True, bias=True)

    def dummy(self, arch: str, name: str) -> Path:
        return self.dummies(arch) / name

    def dummies(self, arch: str | None = None) -> Path:
        """Make llama.cpp's dummy models of one architecture, or of all, and return their folder."""
        folder = self.folder / f"dummies-{arch or 'all'}"
        if not folder.is_dir():
            folder.mkdir()
            command = [str(self.archs), "-s", SEED, "-o", str(folder), *(["-a", arch] if arch else [])]
            # this only makes input; another case finds leaks in this program
            env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
            subprocess.run(command, check=True, capture_output=True, env=env)
        return folder


@dataclass(frozen=True)
class Recipe:
    """A dense model and its spans.

    `text`: it has a tokenizer; `bos`: with a BOS token; `blocks`: head sizes are multiples of 32.
    """

    name: str
    make: Callable[[Kitchen], Path]
    spans: tuple[str, ...]
    text: bool = True
    bos: bool = True
    blocks: bool = True


MODELS = (
    Recipe("stdlib-5m", Kitchen.demo, ("6-9", "every:2")),
    Recipe("tiny-mha", lambda kitchen: kitchen.tiny("MHA"), ("2-5",)),
    Recipe("tiny-gqa", lambda kitchen: kitchen.tiny("GQA"), ("1-2,4-6", "0-7")),
    Recipe("tiny-mqa", lambda kitchen: kitchen.tiny("MQA"), ("1:3+5-6",)),
    Recipe("tiny-wide", lambda kitchen: kitchen.tiny("GQA", parity.WIDE), ("5-7",)),
    Recipe("tiny-gemma3", lambda kitchen: kitchen.sliding("gemma3"), ("4-11",)),
    Recipe("fused-qkv", Kitchen.fused, ("6-9",), text=False, bos=False, blocks=False),
    Recipe("dummy-llama", lambda kitchen: kitchen.dummy("llama", "llama-dense.gguf"), ("0-1",), bos=False),
    Recipe("dummy-llama-moe", lambda kitchen: kitchen.dummy("llama", "llama-moe.gguf"), ("0-1",), bos=False),
)


@dataclass(frozen=True)
class Model:
    name: str
    path: Path
    recipe: Recipe


def make_models(kitchen: Kitchen) -> Iterator[tuple[Model, list[Model]]]:
    """Yield each dense model with its SA exports."""
    for recipe in MODELS:
        dense = recipe.make(kitchen)
        shared = []
        for spans in recipe.spans:
            out = export(dense, kitchen.folder / f"{recipe.name}-SA{spans}.gguf", spans)
            shared.append(Model(f"{recipe.name} {spans}", out, recipe))
        yield Model(recipe.name, dense, recipe), shared


def make_bad(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield broken SA files: the mistake, the file, and the message of the loader."""
    good = export(small_gguf.write_dense(folder / "good-dense.gguf"), folder / "good.gguf")
    for name, (make, message) in BAD_FILES.items():
        make(good, bad := folder / f"bad-{name}.gguf")
        yield name, bad, message
