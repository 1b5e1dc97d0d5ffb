"""What an export is asked for: the options of `shareatt-export export`, and the arguments of its Python function."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..formats.texts import TextSource
from ..formats.weight_types import weight_type
from ..model.spans import SourceMode
from ..searching.request import Budget


@dataclass(frozen=True)
class ExportRequest:
    """Raises ValueError for an unknown `outtype`.

    `model`: a Hugging Face folder, a GGUF file (the first one of shards), or the id of a model on the hub.
    `spans`: which layers share, in the syntax of --spans; "auto" searches for them, until one of `followers`, `max_kl`
    (nats per token) and `kv_bytes` (per token) is met.
    `drop`: layers and KV groups that lose their attention, in the syntax of --drop. `map`: a JSON file with an
    attention map, as a search writes it, instead of both.
    `out`: the file to write, or a folder, in which the plan names the file; a name that ends in a slash is a folder.
    None makes a plan alone.
    `outtype`: "auto" keeps the weights as they are; else a name that llama-quantize knows.
    `split_max_size`: bytes of tensors in one file. `text`: what `align`, `refit` and a search measure with.
    """

    model: Path | str
    spans: str | None = None
    out: Path | str | None = None
    source: SourceMode = "first"
    outtype: str = "auto"
    imatrix: Path | None = None
    threads: int | None = None
    split_max_size: int | None = None
    align: bool = False
    refit: bool = False
    text: TextSource = None
    followers: int | None = None
    max_kl: float | None = None
    kv_bytes: int | None = None
    fast: bool = False
    drop: str | None = None
    map: Path | None = None
    force: bool = False
    llama_cpp: Path | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    verbose: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "outtype", weight_type(self.outtype))

    @property
    def budget(self) -> Budget:
        return Budget(self.followers, self.max_kl, self.kv_bytes)

    @property
    def out_path(self) -> Path | None:
        return None if self.out is None else Path(self.out)

    @property
    def out_folder(self) -> Path | None:
        """The folder to write in, if `out` names one and not a file."""
        path = self.out_path
        if path is None or not (path.is_dir() or str(self.out).endswith(("/", os.sep))):
            return None
        return path

    @property
    def n_threads(self) -> int:
        return self.threads or os.cpu_count() or 2
