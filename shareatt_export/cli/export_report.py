"""What an export says: its plan and its result, as tables and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from ..exporting.job import ExportJob
from ..exporting.pipeline import Exported
from ..formats.gguf_header import TensorInfo
from ..model.architectures import split_tensor_name
from ..model.map_text import in_words
from ..model.spans import Span
from ..plan.plan import Plan
from ..system.streams import sha256
from .corpora import MATTERS, corpus_dict
from .tables import NEEDS, change, plain, size, table


def dropped_by(plan: Plan, span: Span) -> list[TensorInfo]:
    followers = tuple(f"blk.{layer}." for layer in span.followers)
    return [info for info in plan.dropped if info.name.startswith(followers)]


def plan_dict(job: ExportJob) -> dict[str, Any]:
    plan, facts = job.plan, job.plan.facts
    layers = plan.attention.source_layers
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
        "source_layers": None if layers is None else list(layers),
        "map": plan.spans_text,
        "source_heads": [list(sources) for sources in plan.attention.sources],
        "tensors": {"before": len(plan.dense.tensors), "after": len(plan.tensors), "dropped": len(plan.dropped)},
        "recoded_tensors": [
            {"tensor": copy.name, "from": copy.origin.type.name, "to": copy.type.name} for copy in plan.recoded
        ],
        "weight_bytes": {"before": plan.weight_bytes_before, "after": plan.weight_bytes_after},
        "kv_bytes_per_token": {"before": plan.kv_bytes_per_token_before, "after": plan.kv_bytes_per_token_after},
        "kv_bytes_at_context": {
            "n_ctx": facts.n_ctx_train,
            "before": plan.kv_bytes_per_token_before * facts.n_ctx_train,
            "after": plan.kv_bytes_per_token_after * facts.n_ctx_train,
        },
        "outtype": job.request.outtype.lower(),
        "fit": {"how": str(plan.fitting), "text": corpus_dict(job.text)} if plan.fitting and job.text else None,
        "file_bytes": list(job.sizes),
        "needs": NEEDS,
    }


def exported_dict(done: Exported, hashed: bool) -> dict[str, Any]:
    """`hashed`: add the SHA-256 of each file, which takes another pass over it."""
    files = [{"file": str(file), "bytes": file.stat().st_size} for file in done.files]
    if hashed:
        files = [entry | {"sha256": sha256(path)} for entry, path in zip(files, done.files, strict=True)]
    data = {"outputs": files, "source_blake3": done.source_blake3, "verified_bytes": done.n_bytes}
    return data | ({"followers": [asdict(follower) for follower in done.followers]} if done.followers else {})


def show_followers(done: Exported, console: Console) -> None:
    """Show what the fit did to each follower."""
    columns = ("layer", "sources", "its heads, in the order used", "error before", "after refit", "ridge")
    rows = [
        (
            str(follower.layer),
            ", ".join(map(str, follower.sources)),
            "as they were"
            if follower.heads == tuple(range(len(follower.heads)))
            else " ".join(map(str, follower.heads)),
            "" if follower.error_before is None else f"{follower.error_before:.3f}",
            "" if follower.error is None else f"{follower.error:.3f}",
            "" if follower.ridge is None else f"{follower.ridge:g}",
        )
        for follower in done.followers
    ]
    console.print(table(rows, columns), highlight=False)
    if done.job.plan.fitting and done.job.plan.fitting.refit:
        console.print(
            "The errors compare a follower's attention output with the dense model's, on pieces of the text that were "
            f"held out of the fit. {MATTERS}",
            highlight=False,
        )
    if again := [str(follower.layer) for follower in done.followers if follower.requantised]:
        layers = f"layer{'s' * (len(again) > 1)} {', '.join(again)}"
        console.print(
            f"The output projection (W_O) of {layers} was quantised again, to the type it had.", highlight=False
        )


def _heads_words(heads: Sequence[int]) -> str:
    return "as they were" if list(heads) == list(range(len(heads))) else " ".join(map(str, heads))


def show_plan(job: ExportJob, console: Console) -> None:
    plan, facts = job.plan, job.plan.facts
    n_ctx = facts.n_ctx_train
    name = plan.dense.text("general.name", plan.dense.path.name)
    console.print(f"[bold]{plain(name)}[/bold]: {plain(facts.arch)}, {facts.n_layer} layers", highlight=False)
    spans = [(str(span), span.in_words(), _dropped_words(dropped_by(plan, span))) for span in plan.spans]
    layers = [(str(layer), in_words(plan.attention, layer)) for layer in plan.attention.touched] if not spans else []
    console.print(table(spans, ("span", "attention", "export")) if spans else table(layers, ("layer", "KV groups")))
    before, after = plan.kv_bytes_per_token_before, plan.kv_bytes_per_token_after
    sizes = [
        ("weights", plan.weight_bytes_before, plan.weight_bytes_after),
        ("KV cache per token (f16)", before, after),
        (f"KV cache at {n_ctx} tokens (f16)", before * n_ctx, after * n_ctx),
    ]
    console.print(
        table([(what, size(b), size(a), change(b, a)) for what, b, a in sizes], ("", "dense", "SA", "change"))
    )
    for note in _recoded_words(plan):
        console.print(note, highlight=False)
    encoding = f" of {job.quantisation.type}" if job.quantisation else ""
    files = "1 file" if len(job.sizes) == 1 else f"{len(job.sizes)} files"
    console.print(f"writes: {files}{encoding}, {sum(job.sizes)} bytes", highlight=False)
    if plan.dense.trailing:
        console.print(f"leaves out: {plan.dense.trailing} bytes behind the last tensor, which belong to no tensor")
    console.print(f"needs: {NEEDS}", highlight=False)


def _recoded_words(plan: Plan) -> Iterator[str]:
    for before, after in sorted({(copy.origin.type, copy.type) for copy in plan.recoded}):
        names = [copy.name for copy in plan.recoded if (copy.origin.type, copy.type) == (before, after)]
        layers = ", ".join(str(split_tensor_name(name)[0]) for name in names)
        yield (
            f"encodes the output projection of layer{'s' * (len(names) > 1)} {layers} anew as {after.name}: the "
            f"columns of a KV group are no whole blocks of {before.name}"
        )


def _dropped_words(dropped: list[TensorInfo]) -> str:
    return f"{len(dropped)} tensors dropped, {size(sum(info.n_bytes for info in dropped))}"
