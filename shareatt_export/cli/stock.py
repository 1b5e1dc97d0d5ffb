"""`shareatt-export stock`."""

from pathlib import Path

import click

from .option_types import FILE
from .options import json_option, quiet_option


@click.command("stock", short_help="Make a GGUF for unpatched llama.cpp, of a model that only drops.")
@click.argument("sa", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The GGUF file to write.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
@quiet_option
def stock_command(sa: Path, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Make a GGUF that unpatched llama.cpp runs, of an SA GGUF whose KV groups are dropped and do not follow others.

    It has the architecture "deci", which is Llama with a number of heads for each layer. SA must be a Llama (llama) or
    a Qwen2 (qwen2). An export with --drop, or of the map "KV groups dropped" of a search, makes such a file; it may be
    refitted, healed or quantised.
    """
    from ..exporting.stock import write_stock
    from .output import err, print_json
    from .progress_bar import steps

    with steps(err, quiet) as step:
        write_stock(sa, output, force=force, step=step)
    if as_json:
        print_json({"sa": str(sa), "output": str(output), "bytes": output.stat().st_size})
    else:
        click.echo(output)
