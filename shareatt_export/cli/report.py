"""What the commands say: each report as a table for people and as a dict for --json."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..benchmark.measure import Measured
from ..benchmark.rows import Ratio, Row, rows
from ..exporting.pipeline import Exported, ExportJob
from ..formats.gguf_header import Header, TensorInfo
from ..formats.gguf_keys import KEY_EXPORTER, KEY_FORMAT_VERSION, KEY_SOURCE_SHA256
from ..llamacpp.pin import pin
from ..llamacpp.runtime import RuntimeStatus
from ..model.facts import Facts
from ..model.spans import Span, spans_of
from ..plan.plan import Plan
from ..system.streams import sha256

NEEDS = "llama.cpp with Shared Attention (shareatt-export runtime build)"


def size(n_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.2f} {unit}"
    return f"{n_bytes} B"


def change(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def table(rows: Iterable[Sequence[str]], columns: Sequence[str] = ()) -> Table:
    grid = Table(*columns, box=box.SIMPLE_HEAD, show_header=bool(columns))
    for row in rows:
        grid.add_row(*map(plain, row))
    return grid


def plain(text: str) -> str:
    """Text of a stranger's file, without what a terminal or rich would act on."""
    return escape("".join(char if char.isprintable() else "?" for char in text))


def dropped_by(plan: Plan, span: Span) -> list[TensorInfo]:
    followers = tuple(f"blk.{layer}." for layer in span.followers)
    return [info for info in plan.dropped if info.name.startswith(followers)]


def job_dict(job: ExportJob) -> dict[str, Any]:
    plan, facts = job.plan, job.plan.facts
    return {
        "model": str(job.request.model),
        "architecture": facts.arch,
        "spans": [
            {
                "span": str(span),
                "source": span.source,
                "followers": list(span.followers),
                "in_words": span.in_words(),
                "dropped_tensors": [info.name for info in dropped_by(plan, span)],
            }
            for span in plan.spans
        ],
        "source_layers": list(plan.source_layers),
        "tensors": {"before": len(plan.dense.tensors), "after": len(plan.tensors), "dropped": len(plan.dropped)},
        "weight_bytes": {"before": plan.weight_bytes_before, "after": plan.weight_bytes_after},
        "kv_bytes_per_token": {"before": plan.kv_bytes_per_token_before, "after": plan.kv_bytes_per_token_after},
        "kv_bytes_at_context": {
            "n_ctx": facts.n_ctx_train,
            "before": plan.kv_bytes_per_token_before * facts.n_ctx_train,
            "after": plan.kv_bytes_per_token_after * facts.n_ctx_train,
        },
        "outtype": job.request.outtype.lower(),
        "fit": {"how": str(plan.fitting), "text": job.text.name, "sha256": job.text.sha256}
        if plan.fitting and job.text
        else None,
        "file_bytes": list(job.sizes),
        "needs": NEEDS,
    }


def exported_dict(done: Exported, hashed: bool) -> dict[str, Any]:
    """`hashed`: with the SHA-256 of each file, which takes another pass over it."""
    files = [{"file": str(file), "bytes": file.stat().st_size} for file in done.files]
    if hashed:
        files = [of | {"sha256": sha256(file)} for of, file in zip(files, done.files, strict=True)]
    data = {"outputs": files, "source_sha256": done.source_sha256, "verified_bytes": done.n_bytes}
    return data | ({"followers": [asdict(follower) for follower in done.followers]} if done.followers else {})


def show_followers(done: Exported, console: Console) -> None:
    """What a fit has done to each."""
    columns = ("follower", "source", "its heads, in the order used", "error before", "after refit", "ridge")
    rows = [
        (
            str(of.layer),
            str(of.source),
            "as they were" if of.heads == tuple(range(len(of.heads))) else " ".join(map(str, of.heads)),
            "" if of.error_before is None else f"{of.error_before:.3f}",
            "" if of.error is None else f"{of.error:.3f}",
            "" if of.ridge is None else f"{of.ridge:g}",
        )
        for of in done.followers
    ]
    console.print(table(rows, columns), highlight=False)
    if done.job.plan.fitting and done.job.plan.fitting.refit:
        console.print("Errors are of a follower's attention output, relative to the dense model's, on held-out text.")
    if again := [str(of.layer) for of in done.followers if of.requantised]:
        layers = f"layer{'s' * (len(again) > 1)} {', '.join(again)}"
        console.print(f"Quantised again, to the type that it had: W_O of {layers}.", highlight=False)


def show_plan(job: ExportJob, console: Console) -> None:
    plan, facts = job.plan, job.plan.facts
    n_ctx = facts.n_ctx_train
    name = plan.dense.text("general.name", plan.dense.path.name)
    console.print(f"[bold]{plain(name)}[/bold]: {plain(facts.arch)}, {facts.n_layer} layers", highlight=False)
    spans = [(str(span), span.in_words(), _dropped_words(dropped_by(plan, span))) for span in plan.spans]
    console.print(table(spans, ("span", "attention", "export")))
    before, after = plan.kv_bytes_per_token_before, plan.kv_bytes_per_token_after
    sizes = [
        ("weights", plan.weight_bytes_before, plan.weight_bytes_after),
        ("KV cache per token (f16)", before, after),
        (f"KV cache at {n_ctx} tokens (f16)", before * n_ctx, after * n_ctx),
    ]
    console.print(
        table([(what, size(b), size(a), change(b, a)) for what, b, a in sizes], ("", "dense", "SA", "change"))
    )
    of = f" of {job.quantisation.type}" if job.quantisation else ""
    files = "1 file" if len(job.sizes) == 1 else f"{len(job.sizes)} files"
    console.print(f"writes: {files}{of}, {sum(job.sizes)} bytes", highlight=False)
    if plan.dense.trailing:
        console.print(f"leaves out: {plan.dense.trailing} bytes behind the last tensor, which no tensor names")
    console.print(f"needs: {NEEDS}", highlight=False)


def _dropped_words(dropped: list[TensorInfo]) -> str:
    return f"{len(dropped)} tensors dropped, {size(sum(info.n_bytes for info in dropped))}"


def inspect_dict(header: Header, facts: Facts, runtime: RuntimeStatus) -> dict[str, Any]:
    sha = header.value(KEY_SOURCE_SHA256)
    return {
        "file": str(header.path),
        "file_bytes": header.file_size,
        "name": header.text("general.name", ""),
        "architecture": facts.arch,
        "layers": facts.n_layer,
        "tensors": len(header.tensors),
        "weight_bytes": sum(info.n_bytes for info in header.tensors.values()),
        "kv_bytes_per_token": facts.kv_bytes_per_token(facts.source_layers),
        "context_length": facts.n_ctx_train,
        "shared_attention": facts.is_shared,
        "source_layers": list(facts.source_layers),
        "spans": [{"span": str(span), "in_words": span.in_words()} for span in spans_of(facts.source_layers)],
        "format_version": header.value(KEY_FORMAT_VERSION),
        "exporter": header.value(KEY_EXPORTER),
        "source_sha256": sha,
        "needs": NEEDS if facts.is_shared else "any llama.cpp that knows the architecture",
        "runtime": runtime_dict(runtime),
    }


def show_inspect(header: Header, facts: Facts, runtime: RuntimeStatus, console: Console) -> None:
    data = inspect_dict(header, facts, runtime)
    rows = [
        ("file", f"{data['file']} ({size(data['file_bytes'])})"),
        ("model", f"{data['name'] or '(no name)'}: {facts.arch}, {facts.n_layer} layers, {data['tensors']} tensors"),
        ("KV cache", f"{data['kv_bytes_per_token']} bytes per token (f16), context {facts.n_ctx_train}"),
        *[(f"span {span['span']}", span["in_words"]) for span in data["spans"]],
    ]
    if facts.is_shared:
        rows += [("made by", str(data["exporter"] or "?")), ("from", f"tensor data {data['source_sha256'] or '?'}")]
    else:
        rows.append(("attention", "dense: every layer computes its own"))
    rows.append(("needs", str(data["needs"])))
    rows.append(("runtime", _runtime_words(runtime)))
    console.print(table(rows))


def runtime_dict(runtime: RuntimeStatus) -> dict[str, Any]:
    return {
        "ready": runtime.ready,
        "path": str(runtime.bin),
        "abi": pin().abi,
        "llama_cpp": pin().llama_cpp_commit,
        "built": runtime.built,
    }


def _runtime_words(runtime: RuntimeStatus) -> str:
    if not runtime.ready:
        return "not built; run 'shareatt-export runtime build'"
    built = runtime.built
    return f"ready in {runtime.bin} (llama.cpp {built['llama_cpp']}, {built['source']}, ABI {built['abi']})"


def show_runtime(runtime: RuntimeStatus, console: Console) -> None:
    console.print(table([("runtime", _runtime_words(runtime)), ("folder", str(runtime.root))]))


def show_bench(measured: Measured, console: Console) -> None:
    request = measured.request
    values = [setting.name for setting in measured.settings]
    shared = [setting.name for setting in measured.settings if setting.shared]
    columns = ["", "depth", *values, *(f"{name} / better dense" for name in shared), "predicted"]
    cells = [_bench_cells(row, values, shared) for row in rows(measured)]
    console.print(table(cells, columns))
    console.print(
        f"* the better dense setting (for attention: flash on). Prefill of {request.prompt} tokens, decode of "
        f"{request.generate}; medians of {request.rounds} rounds (lowest-highest); threads: {request.threads}. "
        f"Attention: of one layer, in SA of a follower. Memory: at context {request.n_ctx}; its peak with, and "
        "anonymous without, the mapped weights.",
        highlight=False,
    )


def _bench_cells(row: Row, values: list[str], shared: list[str]) -> list[str]:
    unit, scale = {"bytes": ("MiB", 2**-20), "seconds": ("ms", 1000.0)}.get(row.unit, (row.unit, 1.0))

    def value(name: str) -> str:
        number = scale * row.values[name]
        return f"{number:.{0 if number >= 1000 else 2}f}" + " *" * (name == row.baseline)

    def ratio(of: Ratio) -> str:
        return f"{of.median:.3f}" if of.low == of.high else f"{of.median:.2f} ({of.low:.2f}-{of.high:.2f})"

    depth = "" if row.depth is None else str(row.depth)
    predicted = "" if row.predicted is None else f"{row.predicted:.3f}"
    ratios = [ratio(row.ratios[name]) for name in shared]
    return [f"{row.what}, {unit}", depth, *map(value, values), *ratios, predicted]
