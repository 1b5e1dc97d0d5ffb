"""`shareatt-export lm-eval`: lm-evaluation-harness with GGUFs as models."""

import click


@click.command(
    "lm-eval",
    short_help="Run lm-evaluation-harness on a GGUF.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT...]")
def lm_eval_command(arguments: tuple[str, ...]) -> None:
    """Run the command line of lm-evaluation-harness, which has a model called shareatt here.

    All arguments go to it: shareatt-export lm-eval run --model shareatt --model_args model=FILE.gguf --tasks NAME
    """
    from ..harness.run import run

    run(arguments)
