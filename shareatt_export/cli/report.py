"""`shareatt-export report`, and the page that other commands write beside their JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .option_types import FILE
from .options import quiet_option

PAGE = "report.html"  # its name in a folder that a command writes
page_option = click.option("--report", type=FILE, metavar="HTML", help="Write a page that shows what was measured.")
force_page_option = click.option("--force", is_flag=True, help="Overwrite HTML.")


@click.command("report", short_help="Show what was measured, as one HTML page.")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="JSON...")
@click.option("-o", "--output", type=FILE, required=True, metavar="HTML", help="The page to write.")
@force_page_option
@quiet_option
def report_command(files: tuple[Path, ...], output: Path, force: bool, quiet: bool) -> None:
    """Show what analyze, search, eval and bench measured, as one HTML page.

    JSON are files that these commands wrote with --json or -o, of one model or of several. The page needs no network,
    no server and no other file.
    """
    from ..report.measurements import read_measurements
    from ..report.page import page
    from ..system.staging import check_output, write_text

    check_output(output, files, force)
    write_text(output, page([each for path in files for each in read_measurements(path)]), force)
    if not quiet:
        click.echo(output)


def check_page(output: Path | None, inputs: tuple[Path, ...], force: bool) -> None:
    """Raises OutputRefused before minutes of measurement if the page could not be written."""
    from ..system.staging import check_output

    if output is not None:
        check_output(output, inputs, force)


def write_page(output: Path | None, data: Mapping[str, Any], name: str, force: bool) -> None:
    """Write the page of one report, if it was asked for. `name`: of its command, as no file has the JSON."""
    from ..system.staging import write_text

    if output is not None:
        write_text(output, page_of(data, name), force)


def page_of(data: Mapping[str, Any], name: str) -> str:
    """Return the page of the JSON that a command writes into a file of this name."""
    from ..report.measurements import measurement
    from ..report.page import page

    return page([measurement(data, name)])
