"""What `shareatt-export heal` says: before it trains, and after."""

import shlex
from collections import Counter
from typing import Any

from rich.console import Console

from ..healing import heal
from ..healing.heal import Healed
from ..healing.job import HealJob
from ..model.attention_map import AttentionMap
from ..model.map_text import in_words
from ..model.spans import spans_of
from .tables import table


def plan_dict(job: HealJob) -> dict[str, Any]:
    return {
        "spans": job.map_text,
        "trained": [{"name": part.name, "shape": list(job.shapes[part.name])} for part in job.parts],
        "n_trained": job.n_trained,
        "learning_rate": job.request.learning_rate,
    }


def show_plan(job: HealJob, console: Console) -> None:
    if isinstance(job.attention, AttentionMap):
        layers = [(str(layer), in_words(job.attention, layer)) for layer in job.attention.touched]
        console.print(table(layers, ("layer", "KV groups")))
    else:
        console.print(table([(str(span), span.in_words()) for span in spans_of(job.attention)], ("span", "")))
    kinds = Counter(".".join(part.name.split(".")[-2:]) for part in job.parts)
    what = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
    how = f", as differences of rank {job.request.rank}" if job.request.lora_rank else ""
    if n := job.request.self_text:
        console.print(
            f"text: {n:,} tokens that the model samples itself; no one has checked what they say", highlight=False
        )
    rate = f"{job.request.learning_rate:g}" if job.request.learning_rate else "measured on the first batch"
    console.print(f"trains {job.n_trained:,} numbers: {what}{how}; learning rate: {rate}", highlight=False)


def as_dict(done: Healed) -> dict[str, Any]:
    return {"output": str(done.job.request.out), **heal.as_dict(done)}


def show(done: Healed, console: Console) -> None:
    request, data = done.job.request, heal.as_dict(done)
    before, after = data["held_out"][0], data["held_out"][-1]
    console.print(
        f"{done.result.steps} steps, {data['tokens']:,} tokens, {data['seconds'] / 60:.1f} minutes, learning rate "
        f"{data['learning_rate']:g}; held-out windows: perplexity {before['perplexity']:.2f} -> "
        f"{after['perplexity']:.2f} (dense {data['perplexity_dense']:.2f}), KL {before['kl']:.3f} -> {after['kl']:.3f}",
        highlight=False,
    )
    if after["kl"] > before["kl"]:
        console.print("warning: the model is worse than before healing; heal with a smaller --lr, or for longer")
    if (written := done.written) is not None:
        console.print(
            f"the file in the runtime, same windows: perplexity {written.perplexity:.2f}, KL {written.kl.value:.3f}",
            highlight=False,
        )
        return
    command = ["shareatt-export", str(request.out), "--spans", done.job.map_text, "-o", f"{request.out}.gguf"]
    console.print(f"export it: {shlex.join(command)}", highlight=False, soft_wrap=True)
