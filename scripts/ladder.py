#!/usr/bin/env python3
"""Measure the quality ladder of docs/quality.md: the quality after each step, beside common and cheap alternatives.

    python scripts/train_demo_model.py --training-text train.txt
    python scripts/ladder.py tests/models/stdlib-5m train.txt build/ladder-5m --followers 4
    python scripts/ladder.py tests/models/stdlib-5m train.txt build/ladder-5m --followers 4 --no-heal

It fits and searches on the first megabyte of the training text, heals on all of it, and scores on the held-out text of
the model. Files in the work folder are kept and not made again, so an interrupted run can be continued.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.facts import read_facts

CALIBRATION_BYTES = 1_000_000
FIT = ("--align", "--refit")
N_CTX = 256  # context length of healing and of the scores


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
        from shareatt_export.exporting.convert import converted

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

    def healed(self, name: str, fitted: Path, *more: str) -> Path:
        def make(out: Path) -> None:
            options = ("--text", self.text, *self.heal_options, *more, "-q", "-o", out)
            self.tool("heal", self.model, "--from", fitted, *options)

        folder = self.made(name, make)
        spans = read_header(fitted).text("shareatt.spans")
        return self.made(f"{name}.gguf", lambda out: self.tool(folder, "--spans", spans, "-q", "-o", out))

    def files(self, followers: int, heal: bool) -> Iterator[Path]:
        source = self.n_layer - 2 - followers
        for where, spans in {
            "late": f"{source}-{source + followers}",
            "found": self.searched(followers),
            "every2": "every:2",
            "found-half": self.searched(self.n_layer // 2),
        }.items():
            yield self.exported(f"{where}-plain.gguf", spans)
            yield self.exported(f"{where}-align.gguf", spans, "--align")
            fitted = self.exported(f"{where}-refit.gguf", spans, *FIT)
            yield fitted
            if heal and where == "found":
                yield self.healed(f"{where}-healed", fitted)
            if heal and where == "found-half":
                yield self.healed(f"{where}-healed-mlp", fitted, "--train-mlp")

    def scores(self, followers: int, heal: bool) -> Path:
        files = list(self.files(followers, heal))
        heldout = self.model / "heldout.txt"
        options = ("--text", heldout, "--ctx", N_CTX, "--windows", 128, "--drop", "--no-weights", "--json", "-q")
        return self.made("scores.json", lambda out: out.write_text(self.tool("eval", self.dense, *files, *options)))


@dataclass(frozen=True)
class Row:
    where: str  # late, found, every2, found-half, or the name of a baseline
    step: str
    spans: str
    score: dict[str, Any]

    @property
    def kv_bytes(self) -> int:
        return int(self.score["kv_bytes_per_token"])


STEPS = {
    "dropped": "no attention in its followers",
    "plain": "shared",
    "align": "+ heads aligned",
    "refit": "+ W_O refitted",
    "healed": "+ healed",
    "healed-mlp": "+ healed, MLPs too",
}


def rows(scores: Path) -> Iterator[Row]:
    """Yield the rows in the order of the files; the attention that is left away comes first in each place."""
    data = json.loads(scores.read_text())
    by_name = {score["name"]: score for score in data["scores"]}
    dropped = {each["name"]: by_name[each["dropped"]] for each in data["dropped"]}
    for score in data["scores"]:
        path, name = Path(score["model"]), score["name"].removesuffix(".gguf")
        step = next((step for step in sorted(STEPS, key=len, reverse=True) if name.endswith(f"-{step}")), "")
        where = name.removesuffix(f"-{step}")
        spans = read_header(path.with_name(f"{where}-plain.gguf")).text("shareatt.spans") if step else ""
        if step == "plain":
            yield Row(where, "dropped", spans, dropped[score["name"]])
        if not score["without_attention"]:
            yield Row(where, step, spans, score)


def table(found: list[Row]) -> Iterator[str]:
    yield "| spans | | KV bytes per token | KL, mean | KL, p99 | perplexity | same top token |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    dense = found[0].score["perplexity"]
    for row in found:
        kl, perplexity = row.score["kl"], row.score["perplexity"]
        cells = (
            f"{row.where} `{row.spans}`" if row.step == "dropped" else "" if row.step else row.where,
            STEPS.get(row.step, ""),
            str(row.kv_bytes),
            f"{kl['mean']:.2g} ± {kl['half_ci95']:.1g}",
            f"{kl['p99']:.2g}",
            f"{perplexity:.2f} ({100 * (perplexity / dense - 1):+.1f} %)"
            if row is not found[0]
            else f"{perplexity:.2f}",
            f"{100 * row.score['same_top']:.1f} %",
        )
        yield f"| {' | '.join(cells)} |"


def plot(found: list[Row], title: str, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    places = list(dict.fromkeys(row.where for row in found if row.step))
    for step, label in STEPS.items():
        points = [row for row in found if row.step == step]
        if points:
            axes.errorbar(
                [places.index(row.where) for row in points],
                [row.score["kl"]["mean"] for row in points],
                [row.score["kl"]["half_ci95"] for row in points],
                marker="x" if step == "dropped" else "o",
                linestyle="none",
                capsize=3,
                label=label,
            )
    for row in found:
        if not row.step and row.score["kl"]["mean"] > 0:
            axes.axhline(row.score["kl"]["mean"], linestyle="--", linewidth=0.8, color="grey")
            place = (len(places) - 0.6, row.score["kl"]["mean"])
            axes.annotate(f"{row.where} ({row.kv_bytes} bytes)", place, ha="right", va="bottom", fontsize=8)
    labels = [next(f"{row.where}\n{row.spans}\n{row.kv_bytes} bytes" for row in found
                   if (row.where, row.step) == (place, "plain")) for place in places]  # fmt: skip
    axes.set_xticks(range(len(places)), labels, fontsize=8)
    axes.set(title=title, ylabel="KL to the dense model, nats per token", yscale="log", xlim=(-0.5, len(places) - 0.5))
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="training text, apart from the model's heldout.txt")
    parser.add_argument("work", type=Path)
    parser.add_argument("--followers", type=int, required=True)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--no-heal", action="store_true")
    parser.add_argument("--heal-steps", type=int, default=2000, help="of 1024 tokens")
    args = parser.parse_args()
    ladder = Ladder(
        args.model, args.text, args.work, ["--steps", str(args.heal_steps), "--ctx", str(N_CTX), "--batch", "4"]
    )
    found = list(rows(ladder.scores(args.followers, not args.no_heal)))
    print("\n".join(table(found)))
    if args.plot:
        plot(found, args.model.name, args.plot)


if __name__ == "__main__":
    main()
