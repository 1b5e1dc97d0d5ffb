"""`shareatt-export inspect`."""

from pathlib import Path

import click

from .option_types import FILE
from .options import json_option


@click.command("inspect", short_help="Say what a GGUF is and what it needs.")
@click.argument("file", type=FILE)
@json_option
def inspect_command(file: Path, as_json: bool) -> None:
    """Say what a GGUF is, which layers share attention, and which runtime it needs."""
    from ..formats.shards import read_model
    from ..llamacpp import runtime
    from ..model.facts import read_facts
    from . import inspect_report
    from .output import out, print_json

    header = read_model(file)
    facts, status = read_facts(header), runtime.status()
    if as_json:
        print_json(inspect_report.as_dict(header, facts, status))
    else:
        inspect_report.show(header, facts, status, out)
