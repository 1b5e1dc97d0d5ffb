#!/usr/bin/env python3
"""The quality ladder of docs/QUALITY.md: what each step wins back, beside what is usual and what is cheap.

    python scripts/train_demo_model.py --training-text train.txt
    python scripts/ladder.py tests/models/stdlib-5m train.txt build/ladder-5m --followers 4
    python scripts/ladder.py tests/models/stdlib-5m train.txt build/ladder-5m --followers 4 --table

Fits and searches on the first megabyte of the training text, heals on all of it, scores on the model's held-out text.
Every file in the work folder is kept and not made again, so an interrupted run goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from shareatt_export.facts import read_facts
from shareatt_export.header import read_header

CALIBRATION_BYTES = 1_000_000
FIT = ("--align", "--refit")


class Ladder:
    def __init__(self, model: Path, text: Path, work: Path, heal: list[str]) -> None:
        self.model, self.text, self.work, self.heal_options = model, text, work, heal
        work.mkdir(parents=True, exist_ok=True)
        self.calibration = work / "calibration.txt"
        self.calibration.write_bytes(text.read_bytes()[:CALIBRATION_BYTES].rsplit(b"\n", 1)[0])
        self.seconds_file = work / "seconds.json"
        self.dense = self.made("dense.gguf", self._convert)
        self.n_layer = read_facts(read_header(self.dense)).n_layer

    def _convert(self, out: Path) -> None:
        from shareatt_export.convert import converted

        with converted(self.model, self.work, "auto", None) as dense:
            dense.replace(out)

    def made(self, name: str, make) -> Path:  # type: ignore[no-untyped-def]
        out = self.work / name
        if not out.exists():
            started = time.monotonic()
            make(out)
            seconds = json.loads(self.seconds_file.read_text()) if self.seconds_file.exists() else {}
            seconds[name] = round(time.monotonic() - started)
            self.seconds_file.write_text(json.dumps(seconds, indent=2))
        return out

    def tool(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "shareatt_export", *map(str, arguments)]
        print("+", *command[2:], file=sys.stderr, flush=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def exported(self, name: str, spans: str, *options: str) -> Path:
        text = ("--text", self.calibration) if options else ()
        return self.made(name, lambda out: self.tool(self.dense, "--spans", spans, *options, *text, "-q", "-o", out))

    def searched(self, followers: int) -> str:
        def make(out: Path) -> None:
            out.mkdir(exist_ok=True)
            options = ("--followers", followers, "--text", self.calibration, "-q", "-o", out, "--json", "--force")
            (out / "result.json").write_text(self.tool("search", self.dense, *options))

        folder = self.made(f"search-{followers}", make)
        return str(json.loads((folder / "result.json").read_text())["spans"])

    def healed(self, name: str, fitted: Path) -> Path:
        def make(out: Path) -> None:
            options = ("--text", self.text, *self.heal_options, "-q", "-o", out)
            self.tool("heal", self.model, "--from", fitted, *options)

        folder = self.made(name, make)
        spans = read_header(fitted).text("shareatt.spans")
        return self.made(f"{name}.gguf", lambda out: self.tool(folder, "--spans", spans, "-q", "-o", out))

    def dropped(self, name: str, spans: Path) -> Path:
        """The dense model without the output of attention in the layers that follow in an SA file."""
        sources = read_facts(read_header(spans)).source_layers

        def make(out: Path) -> None:
            partial = out.with_suffix(".tmp")
            shutil.copy(self.dense, partial)
            with partial.open("r+b") as file:
                for layer in (layer for layer, source in enumerate(sources) if source != layer):
                    info = read_header(self.dense).tensors[f"blk.{layer}.attn_output.weight"]
                    file.seek(info.offset)
                    file.write(bytes(info.n_bytes))
            partial.replace(out)

        return self.made(name, make)

    def files(self, followers: int, heal: bool) -> Iterator[Path]:
        source = self.n_layer - 2 - followers
        for where, spans in {
            "late": f"{source}-{source + followers}",
            "found": self.searched(followers),
            "every2": "every:2",
            "found-half": self.searched(self.n_layer // 2),
        }.items():
            plain = self.exported(f"{where}-plain.gguf", spans)
            yield self.dropped(f"{where}-dropped.gguf", plain)
            yield plain
            yield self.exported(f"{where}-align.gguf", spans, "--align")
            fitted = self.exported(f"{where}-refit.gguf", spans, *FIT)
            yield fitted
            if heal and where != "every2":
                yield self.healed(f"{where}-healed", fitted)

    def scores(self, followers: int, heal: bool) -> Path:
        files = list(self.files(followers, heal))
        heldout = self.model / "heldout.txt"
        options = ("--text", heldout, "--windows", 64, "--json", "-q")
        return self.made("scores.json", lambda out: out.write_text(self.tool("eval", self.dense, *files, *options)))


def table(ladder: Ladder, scores: Path) -> Iterator[str]:
    data = json.loads(scores.read_text())
    yield "| | KV bytes per token | KL, mean | KL, p99 | perplexity | same top token |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for score in data["scores"]:
        path, kl = Path(score["model"]), score["kl"]
        facts = read_facts(read_header(path))
        followers = sum(source != layer for layer, source in enumerate(facts.source_layers))
        name = score["name"].removesuffix(".gguf")
        kv = score["kv_bytes_per_token"]
        if name.endswith("-dropped"):
            sa = read_facts(read_header(path.with_name(path.name.replace("dropped", "plain"))))
            gone = [layer for layer, source in enumerate(sa.source_layers) if source != layer]
            kv -= sum(2 * (facts.n_embd_k(layer) + facts.n_embd_v(layer)) for layer in gone)
        elif followers:
            name += f" (`{read_header(path).text('shareatt.spans')}`)" if name.endswith("plain") else ""
        half = kl["half_ci95"] or 0
        perplexity = f"{score['perplexity']:.3f} ± {score['perplexity'] * score['nll']['half_ci95']:.2f}"
        row = f"{kl['mean']:.3g} ± {half:.1g} | {kl['p99']:.2g} | {perplexity} | {100 * score['same_top']:.1f} %"
        yield f"| {name} | {kv} | {row} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="training text, apart from the model's heldout.txt")
    parser.add_argument("work", type=Path)
    parser.add_argument("--followers", type=int, required=True)
    parser.add_argument("--no-heal", action="store_true")
    parser.add_argument("--heal-minutes", type=float, default=15)
    args = parser.parse_args()
    ladder = Ladder(args.model, args.text, args.work, ["--minutes", str(args.heal_minutes)])
    print("\n".join(table(ladder, ladder.scores(args.followers, not args.no_heal))))


if __name__ == "__main__":
    main()
