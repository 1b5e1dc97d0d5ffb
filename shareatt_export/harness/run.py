"""Run lm-evaluation-harness's own command line, with the model `shareatt` registered.

Later versions of the harness will find the model by the entry point in pyproject.toml.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ..errors import RuntimeProblem

NAME = "shareatt"
TARGET = "shareatt_export.harness.model:GGUFModel"


def register() -> None:
    """Let the harness know the model by its name. Raises RuntimeProblem if the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise RuntimeProblem("lm_eval is not installed", next_step="pip install 'shareatt-export[lm-eval]'")
    import lm_eval.models  # noqa: F401  registers the harness's own models, but only while no other is registered
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


def run(arguments: Sequence[str]) -> None:
    """Run the harness. It ends the process with SystemExit where the arguments are wrong.

    Raises RuntimeProblem if it is not installed, and what harness/model.py raises.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
