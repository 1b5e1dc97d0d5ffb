"""A dense GGUF to heal; the output is an SA GGUF, in which only the trained tensors differ from the dense file.

They are encoded in the type that they have in the dense file, with the importance of columns on the training text, as
llama-imatrix measures it. The student computes with the encoded values in each step, so it learns to live with them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BadInput, Unsupported
from ..evaluation.divergence import Quality
from ..exporting.verify import hold_against
from ..exporting.write import unchanged, write_plan
from ..fitting.fit import Fit, store
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_FIT_TENSORS
from ..formats.identity import recorded_blake3, tensors_blake3
from ..formats.shards import read_model
from ..formats.tensor_copies import RawRows, TensorCopy, cut, raw_rows
from ..formats.texts import Text
from ..llamacpp import runtime
from ..llamacpp.bindings import load
from ..llamacpp.engine import Model
from ..model.architectures import split_tensor_name
from ..model.facts import Facts
from ..plan.cuts import kept_columns
from ..plan.plan import Plan, with_record
from ..system.progress import Step
from ..system.staging import check_space, publish, staged
from . import runtime_scores, self_text
from .dense_model import loaded
from .distill import Distiller
from .encoding import Encoding
from .gguf_weights import FOLDER, Places
from .parts import Part
from .self_text import SelfText
from .trained_weights import TrainedWeights
from .training_text import TrainingWindows, divided, training_windows

MAX_KL = 0.05  # nats per token, from the dense model in the runtime to itself in transformers; rounding gives 0.01
IMPORTANCE_WINDOWS = 16

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgufModel:
    """`plan` has the tensors that are trained as plan.fitted, `begin` is the SA GGUF of --from.

    `own`: the text that the model is to write itself.
    """

    header: Header
    facts: Facts
    config: Any
    skeleton: PreTrainedModel  # without memory for its parameters
    parts: tuple[Part, ...]
    plan: Plan
    begin: Header | None
    own: SelfText | None = None

    @property
    def path(self) -> Path:
        return self.header.path

    @cached_property
    def _places(self) -> Places:
        return Places(self.header, self.facts)

    @cached_property
    def targets(self) -> dict[str, TensorCopy]:
        """The tensor that stores each trained part, by the name of the parameter.

        Raises Unsupported unless they are the tensors that the plan says.
        """
        by_origin = {copy.origin.name: copy for copy in self.plan.fitted}
        infos = {part.name: self._places.info(part.name) for part in self.parts}
        if different := by_origin.keys() ^ {info.name for info in infos.values()}:
            field = f"tensor '{min(different)}'"
            raise Unsupported("transformers has other matrices in this layer", path=self.path, field=field)
        return {name: by_origin[info.name] for name, info in infos.items()}

    def identity(self) -> dict[str, str]:
        return {self.path.name: tensors_blake3(self.header)}

    def windows(self, texts: Sequence[Text], n_ctx: int, progress: Step) -> TrainingWindows:
        if self.own is not None:
            own = self_text.windows(self.own, self.path, lambda fraction: progress("writing text", fraction))
            return divided(torch.from_numpy(own))
        built = runtime.require()
        with Model(load(built.python, built.bin), self.path, vocab_only=True) as model:
            return training_windows(model.tokenize, model.bos, texts, n_ctx)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        state = self._places.state(self.skeleton, dtype)
        model = loaded(type(self.skeleton), self.path, None, config=self.config, state_dict=state, dtype=dtype)
        self._places.scale_rope(model)
        return model

    def check_origin(self, model: PreTrainedModel) -> None:
        if self.begin is not None and recorded_blake3(self.begin) != tensors_blake3(self.header):
            raise BadInput("was made from another dense file", path=self.begin.path, field="--from")

    def initial(self) -> dict[str, Values]:
        """Return the values that the SA GGUF of --from has for trained parts, where they are not the dense file's."""
        changed = self.begin.value(KEY_FIT_TENSORS) if self.begin else None
        if self.begin is None or not isinstance(changed, list):
            return {}
        found: dict[str, Values] = {}
        for part in self.parts:
            if (copy := self.targets[part.name]).name in changed:
                values = self._places.values(self.begin.tensors[copy.name])
                if copy.columns is not None:  # the rest has no effect
                    values = self._with_columns(copy, values)
                found[part.name] = values if part.rows is None else values[: len(part.rows)]
        return found

    def _with_columns(self, copy: TensorCopy, values: Values) -> Values:
        """Return the dense output projection with other values of the columns that the SA file keeps."""
        layer = split_tensor_name(copy.name)[0]
        assert layer is not None  # noqa: S101  (only tensors of layers are cut)
        whole = self._places.values(copy.origin).copy()
        whole[:, kept_columns(self.facts, self.plan.attention, layer)] = values
        return whole

    def stored(self, distiller: Distiller, train: Tensor) -> Encoding:
        """Raises Unsupported if transformers does not compute what the runtime computes."""
        first = train[:1].long()
        with torch.no_grad():
            logits = distiller.teacher(first).logits[0].float().cpu().numpy()
        kl = runtime_scores.kl_to_dense(self.path, first[0].tolist(), logits)
        if not kl <= MAX_KL:
            reason = f"transformers computes other logits than the runtime (KL {kl:.3f}, rounding is below {MAX_KL})"
            raise Unsupported(reason, path=self.path, next_step=FOLDER)
        types = {name: copy.type for name, copy in self.targets.items()}
        return Encoding(runtime.require().bin, self.path, types, distiller.importance(train[:IMPORTANCE_WINDOWS]))

    def write(self, weights: TrainedWeights, record: Mapping[str, Any], out: Path, force: bool) -> None:
        inputs = [*self.header.files, *(self.begin.files if self.begin else ())]
        check_space(out, self.plan.weight_bytes_after)
        with staged(out) as work:
            plan = store(self.plan, Fit((), self._changed(weights)), work / ".trained")
            plan = with_record(plan, json.dumps(_without_paths_and_times(record)))
            file = work / out.name
            with unchanged(self.header.files):
                plan = write_plan(plan, [file], None)
            hold_against(read_model(file), plan)
            publish({file: out}, inputs, force)

    def _changed(self, weights: TrainedWeights) -> dict[TensorCopy, RawRows]:
        """Return the bytes of the trained tensors; rows that are not trained keep theirs."""
        encoding = weights.stored
        assert isinstance(encoding, Encoding)  # noqa: S101  (heal() has set it to what stored() returned)
        changes: dict[TensorCopy, RawRows] = {}
        for name, values in weights.trained().items():
            copy, encoded = self.targets[name], encoding.raw(weights.parts[name], values)
            if (order := self._places.order(copy.origin)) is not None:
                encoded = encoded.reshape(len(order), -1)[order]
            if weights.parts[name].rows is None:
                changes[copy] = cut(encoded.reshape(math.prod(copy.origin.shape[1:]), -1), copy)
                continue
            raw = raw_rows(copy).copy()
            raw.reshape(-1)[: encoded.size] = encoded.reshape(-1)  # of Q, K and V in one tensor, Q and K come first
            changes[copy] = raw
        return changes

    def measured(self, out: Path, windows: Tensor) -> Quality:
        return runtime_scores.quality(self.path, out, windows.tolist())


def _without_paths_and_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record for the file: the same run gives the same bytes, in whatever folder the texts are."""
    texts = [{**text, "name": Path(text["name"]).name} for text in record["text"]]
    ends = (record["held_out"][0], record["held_out"][-1])  # how many lie between depends on the machine
    points = [{key: value for key, value in point.items() if key != "seconds"} for point in ends]
    kept = {key: value for key, value in record.items() if key != "seconds"}
    return kept | {"text": texts, "held_out": points}
