"""`shareatt-export verify`."""

from pathlib import Path

import click

from .option_types import FILE
from .options import json_option, quiet_option


@click.command("verify", short_help="Check an SA file against its dense GGUF.")
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, required=True, metavar="DENSE", help="The dense GGUF that it was made from.")
@json_option
@quiet_option
def verify_command(file: Path, against: Path, as_json: bool, quiet: bool) -> None:
    """Check an SA file against its dense GGUF: source map, list of tensors, offsets, and every copied byte."""
    from ..exporting.verify import verify
    from ..formats.shards import read_model
    from ..system.progress import counted
    from .output import err, print_json
    from .progress_bar import steps

    total = sum(header.file_size for header in (read_model(file), read_model(against)))
    with steps(err, quiet) as step:
        done = verify(file, against, counted(lambda fraction: step("verifying", fraction), total))
    if as_json:
        print_json({"file": str(file), "ok": True, "tensors": done.n_tensors, "bytes": done.n_bytes})
    else:
        click.echo(f"{file}: {done.n_tensors} tensors, {done.n_bytes} bytes, as in {against}")
