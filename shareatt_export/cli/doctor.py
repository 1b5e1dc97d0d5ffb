"""`shareatt-export doctor`."""

import click

from .options import json_option

MARKS = {"ok": "[ok]", "missing": "[missing]", "information": "[info]"}


@click.command("doctor", short_help="Say what this machine has and what is missing.")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what this machine has of what the tool needs, and which command brings what is missing.

    The text can be pasted into a report of a problem. Nothing is installed or built.
    """
    from dataclasses import asdict

    from ..llamacpp.diagnosis import diagnose, platform_note

    findings = diagnose()
    if as_json:
        from .output import print_json

        print_json({"findings": [asdict(finding) for finding in findings], "note": platform_note()})
        return
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        click.echo(f"{MARKS[finding.state]:9} {finding.subject:{width}}  {finding.detail}")
    steps = [finding for finding in findings if finding.state == "missing" and finding.next_step]
    if note := platform_note():
        click.echo(f"\n{note}")
    if not steps:
        click.echo("\nNothing is missing.")
        return
    click.echo("\nNext steps:")
    for finding in steps:
        click.echo(f"    {finding.next_step:45} # {finding.subject}")
