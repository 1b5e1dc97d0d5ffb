"""`shareatt-export heal`."""

from pathlib import Path
from typing import Literal

import click

from ..healing.request import HealRequest
from ..model.spans import SourceMode
from .option_types import FILE
from .options import json_option, quiet_option, source_option, text_option, threads_option


@click.command("heal", short_help="Fine-tune a model to recover what sharing costs.")
@click.argument("model", type=FILE)
@click.option("--spans", help="Which layers share, as in an export.")
@click.option("--from", "begin", type=FILE, metavar="SA",
              help="Start with the followers of an SA GGUF that --align or --refit made of MODEL.")  # fmt: skip
@click.option("-o", "--output", type=FILE, metavar="OUT",
              help="What to write: an SA GGUF if MODEL is a GGUF, else a Hugging Face folder.")  # fmt: skip
@source_option
@text_option("Text to train on")
@click.option("--self-text", type=click.IntRange(1), metavar="N",
              help="Train on N tokens that the model writes itself. They are kept in the cache folder.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True),
              help="Maximum training time.  [default: 15, if --steps is not given]")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Maximum number of training steps.")
@click.option("--method", type=click.Choice(["full", "lora"]), default="full", show_default=True,
              help="Train whole matrices, or low-rank differences (LoRA), which take less memory.")  # fmt: skip
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Rank of --method lora.")
@click.option("--train-mlp", is_flag=True, help="Train the MLPs of the spans' layers, too.")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True),
              help="Learning rate.  [default: measured on the first batch]")  # fmt: skip
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=512, show_default=True,
              help="Tokens of a window: the context length that you will use. Longer ones recover less.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Windows of one training step.")
@click.option("--dtype", type=click.Choice(["f32", "bf16"]), default="bf16", show_default=True,
              help="Type that the model computes in. Trained weights are in f32 in either case.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Where to train.")  # fmt: skip
@click.option("--checkpointing", is_flag=True,
              help="Compute layers again for the backward pass: slower, but takes less memory.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order of the windows.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same settings.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and write nothing.")
@threads_option
@json_option
@click.option(
    "--force", is_flag=True, help="Replace OUT (a folder only if it is a healed model), or an interrupted run."
)
@quiet_option
def heal_command(
    model: Path,
    spans: str | None,
    begin: Path | None,
    output: Path | None,
    source: SourceMode,
    text: tuple[Path, ...],
    self_text: int | None,
    minutes: float | None,
    steps: int | None,
    method: Literal["full", "lora"],
    rank: int,
    train_mlp: bool,
    learning_rate: float | None,
    n_ctx: int,
    batch: int,
    dtype: Literal["f32", "bf16"],
    device: Literal["auto", "cpu", "cuda"],
    checkpointing: bool,
    seed: int,
    resume: bool,
    dry_run: bool,
    n_threads: int,
    as_json: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Fine-tune MODEL, a dense GGUF or a Hugging Face folder, to recover what sharing attention costs it.

    The teacher is the model with its unchanged weights. Trained are the V and output projections of the layers that
    reuse attention weights, and the Q and K projections of the layer that computes them. From a GGUF, OUT is an SA
    GGUF, ready to run. From a folder, OUT is a folder to export with the same spans.
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or use --dry-run).")
    request = HealRequest(
        model=model,
        spans=spans,
        out=None if dry_run else output,
        text=text,
        source=source,
        method=method,
        rank=rank,
        train_mlp=train_mlp,
        learning_rate=learning_rate,
        n_ctx=n_ctx,
        batch=batch,
        minutes=minutes,
        steps=steps,
        dtype=dtype,
        device=device,
        checkpointing=checkpointing,
        seed=seed,
        resume=resume,
        force=force,
        begin=begin,
        self_text=self_text,
        n_threads=n_threads,
    )
    _run(request, as_json, quiet)


def _run(request: HealRequest, as_json: bool, quiet: bool) -> None:
    from ..exporting.convert import require_hf

    require_hf()
    from ..healing.heal import heal  # torch takes seconds to import
    from ..healing.job import planned
    from . import heal_report
    from .output import err, out, print_json
    from .progress_bar import steps

    job = planned(request)
    if not as_json and not quiet:
        heal_report.show_plan(job, err if request.out else out)
    if request.out is None:
        if as_json:
            print_json(heal_report.plan_dict(job))
        return
    with steps(err, quiet) as step:
        done = heal(job, step)
    if not quiet:
        heal_report.show(done, err)
    if as_json:
        print_json(heal_report.as_dict(done))
    else:
        click.echo(str(request.out))
