"""What the commands of cli.py do: one call into the tool, and its result as a table or as JSON."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from gguf import GGMLQuantizationType
from rich.console import Console

from ..benchmark import measure as bench
from ..benchmark import rows as bench_rows
from ..errors import OutputRefused
from ..evaluation import analyze, evaluate
from ..evaluation.tasks import read_tasks
from ..exporting import pipeline, verify
from ..exporting.convert import as_gguf, require_hf
from ..formats.shards import read_model
from ..llamacpp import build, runtime, wheel
from ..llamacpp.texts import read_text
from ..model.facts import read_facts
from ..searching import beam as search
from ..system.progress import counted
from ..system.staging import check_output, write_text
from . import analyze_report as analysis_report
from . import bench_plot, evaluate_plot, evaluate_report, report
from .model_card import model_card
from .progress_bar import steps

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def run_export(
    request: pipeline.ExportRequest, card: bool | None, report_file: Path | None, as_json: bool, quiet: bool
) -> None:
    """`card` None: where the output is a folder. Without Request.out the plan alone is shown."""
    card_file = _card_file(request.out, card) if request.out else None
    for path in filter(None, (card_file, report_file)):
        check_output(path, [], request.force)
    with steps(err, quiet) as step, pipeline.opened(request, step) as job:
        data = report.job_dict(job)
        if not as_json and not quiet:
            report.show_plan(job, err if request.out else out)
        if request.out:
            done = pipeline.export(job)
            if done.followers and not as_json and not quiet:
                report.show_followers(done, err)
            data |= report.exported_dict(done, hashed=as_json or bool(card_file) or bool(report_file))
            if card_file:
                write_text(card_file, model_card(done, data), request.force)
    if report_file:
        write_text(report_file, json.dumps(data, indent=2) + "\n", request.force)
    if as_json:
        _print_json(data)
    elif request.out:
        click.echo("\n".join(map(str, done.files)))


def _card_file(out: Path, card: bool | None) -> Path | None:
    folder = out if out.is_dir() else out.parent
    return folder / "README.md" if card or (card is None and out.is_dir()) else None


def inspect(file: Path, as_json: bool) -> None:
    header = read_model(file)
    facts = read_facts(header)
    if as_json:
        _print_json(report.inspect_dict(header, facts, runtime.status()))
    else:
        report.show_inspect(header, facts, runtime.status(), out)


def run_verify(file: Path, against: Path, as_json: bool, quiet: bool) -> None:
    total = sum(header.file_size for header in (read_model(file), read_model(against)))
    with steps(err, quiet) as step:
        done = verify.verify(file, against, counted(lambda fraction: step("verifying", fraction), total))
    if as_json:
        _print_json({"file": str(file), "ok": True, "tensors": done.n_tensors, "bytes": done.n_bytes})
    else:
        click.echo(f"{file}: {done.n_tensors} tensors, {done.n_bytes} bytes, as in {against}")


def run_analyze(
    model: Path, text: Path | None, output: Path | None, force: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    files = _files_in(output, analysis_report.FILES, force)
    request = analyze.AnalyzeRequest(model, read_text(text), **options)
    with steps(err, quiet) as step, as_gguf(model, step) as gguf:
        analysis = replace(analyze.analyze(replace(request, model=gguf), step), request=request)
    _deliver(analysis_report, analysis, files, force, as_json)


def run_search(
    model: Path,
    text: Path | None,
    output: Path | None,
    followers: int | None,
    max_kl: float | None,
    kv_bytes: int | None,
    beam: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from ..searching import search as finder
    from . import search_report

    files = _files_in(output, search_report.FILES, force)
    request = finder.SearchRequest(
        model,
        read_text(text),
        search.Budget(followers, max_kl, kv_bytes),
        settings=search.Settings(beam=beam),
        state=output / search_report.STATE if output else None,
        **options,
    )
    with steps(err, quiet) as step, as_gguf(model, step) as gguf:
        found = replace(finder.search(replace(request, model=gguf), step), request=request)
    _deliver(search_report, found, files, force, as_json)


def _files_in(folder: Path | None, names: Sequence[str], force: bool) -> list[Path]:
    """Files that will be written to a folder, pictures among them; looked at before anything that takes long."""
    if folder is None:
        return []
    bench_plot.require_matplotlib("-o")
    if not folder.is_dir():
        raise OutputRefused(f"{folder}: no such folder")
    files = [folder / name for name in names]
    for path in files:
        check_output(path, [], force)
    return files


def _deliver(kind: Any, found: Any, files: Sequence[Path], force: bool, as_json: bool) -> None:
    """`kind`: the report's module."""
    data = kind.as_dict(found)
    if files:
        kind.write(found, data, files[0].parent, force)
    if as_json:
        _print_json(data)
    else:
        kind.show(found, out)
        click.echo("".join(f"{path}\n" for path in files), nl=False)


def run_eval(
    dense: Path,
    text: Path | None,
    tasks: tuple[Path, ...],
    positions: bool,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    if plot is not None:
        bench_plot.require_matplotlib("--plot")
    texts, items = read_text(text), tuple(map(read_tasks, tasks))
    with steps(err, quiet) as step, as_gguf(dense, step) as gguf:
        done = evaluate.evaluate(evaluate.EvaluateRequest(gguf, text=texts, tasks=items, **options), step)
    if plot is not None:
        evaluate_plot.plot(done, plot)
    if as_json:
        data = evaluate_report.as_dict(done)
        for score in data["scores"]:
            score["model"] = str(dense) if score["model"] == str(gguf) else score["model"]
        _print_json(data)
    else:
        evaluate_report.show(done, positions, out)


def run_heal(
    output: Path | None, texts: tuple[Path, ...], minutes: float | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Without `output`, what would be trained is shown."""
    require_hf()
    from ..healing import heal
    from . import heal_report

    if minutes is None and options["steps"] is None:
        minutes = 15
    request = heal.HealRequest(out=output, texts=tuple(map(read_text, texts or (None,))), minutes=minutes, **options)
    job = heal.planned(request)
    if not as_json and not quiet:
        heal_report.show_plan(job, err if output else out)
    if output is None:
        if as_json:
            _print_json(heal_report.plan_dict(job))
        return
    with steps(err, quiet) as step:
        done = heal.heal(job, step)
    if not quiet:
        heal_report.show(done, err)
    if as_json:
        _print_json({"output": str(output), **heal.as_dict(done)})
    else:
        click.echo(str(output))


def run_bench(plot: Path | None, as_json: bool, quiet: bool, type_k: str, type_v: str, **options: Any) -> None:
    if plot is not None:
        bench_plot.require_matplotlib("--plot")
    k, v = (GGMLQuantizationType[name.upper()] for name in (type_k, type_v))
    with steps(err, quiet) as step:
        measured = bench.measure(bench.BenchRequest(type_k=k, type_v=v, **options), step)
    if plot is not None:
        bench_plot.plot(bench_rows.rows(measured), measured.request.sa.name, plot)
    if as_json:
        _print_json(bench_rows.as_dict(measured))
    else:
        report.show_bench(measured, out)


def runtime_build(unpatched: bool, llama_cpp: Path | None, as_json: bool, quiet: bool) -> None:
    with steps(err, quiet) as step:
        built = build.build(not unpatched, llama_cpp, step)
    if as_json:
        _print_json(report.runtime_dict(built))
    else:
        click.echo(str(built.bin))


def runtime_wheel(output: Path, as_json: bool, quiet: bool) -> None:
    with steps(err, quiet) as step:
        made = wheel.build_wheel(output, step)
    if as_json:
        _print_json({"wheel": str(made), "version": wheel.version()})
    else:
        click.echo(str(made))


def runtime_status(as_json: bool) -> None:
    if as_json:
        _print_json(report.runtime_dict(runtime.status()))
    else:
        report.show_runtime(runtime.status(), out)


def runtime_path() -> None:
    click.echo(str(runtime.require().bin))


def become(program: str, file: Path, *arguments: str) -> None:
    """Replace this process with a program of the runtime."""
    read_facts(read_model(file))  # a bad file gets our message, not the program's log
    path = str(runtime.tool(program))
    os.execv(path, [path, "-m", str(file), *arguments])  # noqa: S606


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=2))
