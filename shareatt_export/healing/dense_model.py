"""What healing needs of a dense model, whether it is a Hugging Face folder or a GGUF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BadInput
from ..formats.texts import Text
from ..system.progress import Step
from .trained_weights import Stored, TrainedWeights
from .training_text import TrainingWindows

if TYPE_CHECKING:
    from ..evaluation.divergence import Quality
    from .distill import Distiller


class DenseModel(Protocol):
    """A model to heal. All methods raise ShareattError, which names the model's path."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Any:
        """The configuration of the model in transformers."""

    def identity(self) -> dict[str, str]:
        """Return a hash of the weights, by file or other name."""

    def windows(self, texts: Sequence[Text], n_ctx: int, progress: Step) -> TrainingWindows:
        """Return the windows of the texts, in the tokens of the model."""

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model in transformers; one that lacks a weight is refused."""

    def check_origin(self, model: PreTrainedModel) -> None:
        """Check that the SA GGUF of --from, if there is one, was made of this model."""

    def stored(self, distiller: "Distiller", train: Tensor) -> Stored:
        """Return how the output will round trained values. `train` are the windows of the training."""

    def write(self, weights: TrainedWeights, record: Mapping[str, Any], out: Path, force: bool) -> None:
        """Write the output, completely or not at all."""

    def measured(self, out: Path, windows: Tensor) -> "Quality | None":
        """Return how the runtime scores the written output on windows [n_window, n_ctx]; None if it cannot run it."""


def loaded(kind: Any, path: Path, source: Path | None, **options: Any) -> PreTrainedModel:
    """Return kind.from_pretrained(source, ...). Raises BadInput unless there is a tensor for every weight."""
    # transformers applies the soft cap of attention scores only in the eager implementation
    if getattr(options["config"], "attn_logit_softcapping", None):
        options["attn_implementation"] = "eager"
    try:
        model, info = kind.from_pretrained(source, local_files_only=True, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"cannot be loaded: {error}", path=path) from None
    if missing := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise BadInput(f"no tensor for '{missing[0]}', or one of another shape", path=path)
    result: PreTrainedModel = model.eval()
    return result
