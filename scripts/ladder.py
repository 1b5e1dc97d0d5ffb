#!/usr/bin/env python3
"""Measure the quality ladder of docs/quality.md: what maps of a model lose after each step, beside what else is usual.

    python scripts/ladder.py smollm2.gguf build/ladder-smollm2 --followers 3 --save 10% \\
        --score prose-heldout.txt --score code-heldout.txt

A place is a way to choose a map (PLACES); each has files of several steps. Files in the work folder are kept and not
made again, so an interrupted run can be continued. Prints a table in Markdown, and one of the time and memory that each
command took.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.ladder_table import STEPS, Row, plot, table
from scripts.measured_run import shareatt_export
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.facts import read_facts

PLACES = {  # with the steps of their files
    "late": ("plain", "align", "refit"),
    "every2": ("plain",),
    "found": ("plain", "align", "refit", "healed"),
    "half": ("plain", "align", "refit", "healed-mlp"),
    "groups": ("plain", "refit", "healed"),
    "groups-dropped": ("plain", "refit"),
    "groups-shared": ("plain", "refit"),
    "layers-dropped": ("plain", "refit"),
    "layers-shared": ("plain", "refit"),
}
GROUP_SEARCH = {  # the places that a search over KV groups finds: the name of the map there, None for the best
    "groups": None,
    "groups-dropped": "KV groups dropped",
    "groups-shared": "KV groups shared",
    "layers-dropped": "layers dropped",
    "layers-shared": "layers shared",
}
FITS = {  # options of an export by step, and by whether the map is of KV groups, which have no order of heads
    ("align", False): ("--align",),
    ("refit", False): ("--align", "--refit"),
    ("refit", True): ("--refit",),
}


@dataclass(frozen=True)
class Ladder:
    model: Path
    work: Path
    followers: int
    save: str | None
    texts: tuple[Path, ...]  # to fit, search and heal with; none: the default mixture
    scored: tuple[Path, ...]
    n_ctx: int
    n_windows: int
    fast: bool
    heal: tuple[str, ...]  # options of heal; none: nothing is healed
    threads: int

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        out = self.work / name
        if not out.exists():
            make(out)
        return out

    def tool(self, *arguments: object) -> str:
        """Run the tool, note what that took in commands.jsonl, and return what it prints."""
        done = shareatt_export([*arguments, "-q", "--threads", self.threads])
        took = {"command": done.words, "seconds": round(done.seconds), "cpu_seconds": round(done.cpu_seconds)}
        with (self.work / "commands.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(took | {"peak_kb": done.peak_kb}) + "\n")
        return done.printed

    @cached_property
    def dense(self) -> Path:
        """The model as a GGUF."""

        def convert(out: Path) -> None:
            from shareatt_export.exporting.convert import converted

            with converted(self.model, self.work, "auto", None) as dense:
                dense.replace(out)

        return self.made("dense.gguf", convert) if self.model.is_dir() else self.model

    @property
    def n_layer(self) -> int:
        return read_facts(read_header(self.dense)).n_layer

    @property
    def calibration(self) -> tuple[object, ...]:
        return tuple(word for path in self.texts for word in ("--text", path))

    def file(self, place: str, step: str) -> Path:
        """Return the file of a step in a place."""

        def make(out: Path) -> None:
            if step.startswith("healed"):
                mlp = ["--train-mlp"] * step.endswith("-mlp")
                begin = ("--from", self.file(place, "refit"))
                self.tool("heal", self.dense, *begin, *self.calibration, *self.heal, *mlp, "-o", out)
            else:
                fits = () if step == "plain" else (*FITS[step, place in GROUP_SEARCH], *self.calibration)
                self.tool(self.dense, *self._map(place), *fits, "-o", out)

        return self.made(f"{place}-{step}.gguf", make)

    def _map(self, place: str) -> tuple[object, ...]:
        """Return the options that name the map of a place."""
        if place in GROUP_SEARCH:
            folder = self.searched("groups", "--unit", "group", "--save", str(self.save))
            return "--map", self.made(f"{place}.json", lambda out: self._write_map(folder, GROUP_SEARCH[place], out))
        if place in ("found", "half"):
            n = self.followers if place == "found" else self.n_layer // 2
            folder = self.searched(place, "--followers", str(n))
            return "--spans", json.loads((folder / "search.json").read_text())["spans"]
        source = self.n_layer - 2 - self.followers
        return "--spans", "every:2" if place == "every2" else f"{source}-{source + self.followers}"

    def _write_map(self, folder: Path, name: str | None, out: Path) -> None:
        found = json.loads((folder / "search.json").read_text())
        chosen = found if name is None else next(each for each in found["simple"] if each["name"] == name)
        out.write_text(json.dumps({"source_heads": chosen["source_heads"]}))

    def searched(self, place: str, *options: str) -> Path:
        """Return the folder of a search."""
        folder = self.work / f"search-{place}"
        if not (folder / "search.json").exists():
            fast = ("--fast",) * (self.fast and place == "groups")
            self.tool("search", self.dense, *options, *fast, *self.calibration, "-o", folder, "--force")
        return folder

    def rows(self, places: list[str]) -> Iterator[Row]:
        """Yield the rows of the table: the dense model, the places, and quantised K caches of as few bytes."""
        caches: dict[str, Row] = {}
        seen = set[int]()
        for place in places:
            steps = [step for step in PLACES[place] if self.heal or not step.startswith("healed")]
            files = {step: self.file(place, step) for step in steps}
            facts = read_facts(read_header(files["plain"]))
            kv_bytes = facts.kv_bytes_per_token(facts.attention)
            baselines = "--no-baselines" if kv_bytes in seen else "--baselines"
            seen.add(kv_bytes)
            scores = [self._scores(place, list(files.values()), text, baselines) for text in self.scored]
            rows = list(_rows(place, self._name(place), scores))
            if place == places[0]:
                yield next(row for row in rows if row.step == "dense")
            yield from (row for step in STEPS for row in rows if row.step == step)
            caches |= {row.name: row for row in rows if row.step == "cache"}
        yield from sorted(caches.values(), key=lambda row: -row.kv_bytes)

    def _name(self, place: str) -> str:
        header = read_header(self.file(place, "plain"))
        return header.text("shareatt.spans", "") or place

    def _scores(self, place: str, files: list[Path], text: Path, baselines: str) -> dict[str, Any]:
        def evaluate(out: Path) -> None:
            sizes = ("--ctx", self.n_ctx, "--windows", self.n_windows)
            options = ("--text", text, *sizes, baselines, "--no-weights", "--json")
            drop = ("--drop",) * (place not in GROUP_SEARCH)
            out.write_text(self.tool("eval", self.dense, *files, *options, *drop))

        data: dict[str, Any] = json.loads(self.made(f"scores-{place}-{text.stem}.json", evaluate).read_text())
        return data


def _rows(place: str, name: str, scores: list[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row for each model of an evaluation on each of several texts."""
    for each in zip(*(data["scores"] for data in scores), strict=True):
        first = each[0]
        step = Path(first["model"]).stem.removeprefix(f"{place}-")
        if first["without_attention"]:
            step = "dropped"
        elif first["name"] == "dense":
            step = "dense"
        elif first["name"].startswith("dense, K cache"):
            step = "cache"
        yield Row(place, name if step in STEPS else first["name"], step, tuple(each))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense GGUF, or a Hugging Face folder")
    parser.add_argument("work", type=Path, help="folder for all files")
    parser.add_argument("--followers", type=int, required=True, help="layers that follow in 'late' and 'found'")
    parser.add_argument("--save", help="part of the KV cache that maps of KV groups save, as in 10%%")
    parser.add_argument("--places", default="late,every2,found", help=f"any of {', '.join(PLACES)}")
    parser.add_argument(
        "--text", type=Path, action="append", default=[], help="to search, fit and heal with; repeatable"
    )
    parser.add_argument("--score", type=Path, action="append", required=True, help="text to score; repeatable")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window that is scored")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--fast", action="store_true", help="search over KV groups with --fast")
    parser.add_argument("--heal", metavar="OPTIONS", default="", help="heal with these options, as in '--steps 2000'")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    ladder = Ladder(
        model=args.model,
        work=args.work,
        followers=args.followers,
        save=args.save,
        texts=tuple(args.text),
        scored=tuple(args.score),
        n_ctx=args.ctx,
        n_windows=args.windows,
        fast=args.fast,
        heal=tuple(args.heal.split()),
        threads=args.threads,
    )
    rows = list(ladder.rows(args.places.split(",")))
    print("\n".join(table(rows, [text.stem for text in args.score])))
    if args.plot:
        plot(rows, args.model.name, args.plot)


if __name__ == "__main__":
    main()
