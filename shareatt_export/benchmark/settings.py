"""What a benchmark compares: two models that belong together, each in one or more settings of llama.cpp."""

from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from ..errors import BadInput
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_SOURCE_BLAKE3
from ..formats.identity import tensors_blake3
from ..formats.shards import read_model
from ..model.costs import WeightSizes, read_weights
from ..model.facts import Facts, read_facts
from .request import BenchRequest

FLASH_ON, FLASH_OFF = "dense, flash on", "dense, flash off"  # of the unpatched llama.cpp
KERNELS = "dense, SA kernels"
UNLIMITED = 1 << 62  # bytes for attention weights


@dataclass(frozen=True)
class Setting:
    """A model and how it runs.

    `shared` says whether the model shares attention, `kernels` whether a dense model uses the kernels for that; both
    run on the patched library. With `flash_attn` None llama.cpp decides. `p_bytes` is the memory for attention weights
    in bytes; None is the runtime's default, the memory that the missing K saves.
    """

    name: str
    model: Path
    shared: bool
    flash_attn: bool | None = None
    p_bytes: int | None = None
    kernels: bool = False

    @property
    def patched(self) -> bool:
        return self.shared or self.kernels


@dataclass(frozen=True)
class ModelPair:
    """The facts and the weight sizes of the dense model and of its SA model, from the headers of their files."""

    facts: Facts
    sa_facts: Facts
    weights: WeightSizes
    sa_weights: WeightSizes


def cache_type(name: str) -> GGMLQuantizationType:
    """Return the type of the KV cache that an option names, such as "q8_0"."""
    return GGMLQuantizationType[name.upper()]


def settings_of(request: BenchRequest) -> tuple[Setting, ...]:
    """Return the settings to compare: the dense ones first, then SA with the default and each other memory budget.

    On a GPU the kernels do not run.
    """
    dense = [Setting(FLASH_ON, Path(request.dense), shared=False, flash_attn=True)]
    if request.type_v in ("f32", "f16", "bf16"):  # without flash attention llama.cpp cannot quantise V
        dense.append(Setting(FLASH_OFF, Path(request.dense), shared=False, flash_attn=False))
    if not request.gpu_layers:
        dense.append(Setting(KERNELS, Path(request.dense), shared=False, flash_attn=True, kernels=True))
    sa = [Setting("SA", Path(request.sa), shared=True)]
    for n in request.p_bytes:
        name = "SA, P unlimited" if n >= UNLIMITED else f"SA, P {n / 2**20:g} MiB"
        sa.append(Setting(name, Path(request.sa), shared=True, p_bytes=n))
    return (*dense, *sa)


def read_pair(dense: Path, sa: Path) -> ModelPair:
    """Read both headers, and all tensor data of the dense model to compare its identity with the SA model's record.

    Raises BadInput where a file cannot be read, `dense` is not dense, or `sa` was not made from it.
    """
    headers = read_model(dense), read_model(sa)
    facts, sa_facts = map(read_facts, headers)
    if facts.is_shared:
        raise BadInput("shares attention", path=dense, next_step="the first argument must be the dense model")
    if not sa_facts.is_shared:
        command = f"shareatt-export {dense} --spans ... -o OUT"
        raise BadInput("shares no attention", path=sa, next_step=f"make an SA model with '{command}'")
    _check_identity(*headers)
    return ModelPair(facts, sa_facts, *map(read_weights, headers))


def _check_identity(dense: Header, sa: Header) -> None:
    if sa.value(KEY_SOURCE_BLAKE3) != tensors_blake3(dense):
        raise BadInput(
            f"was not made from {dense.path}",
            path=sa.path,
            field=KEY_SOURCE_BLAKE3,
            next_step="give the dense GGUF it was exported from",
        )
