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
    """What to export, and how. Raises ValueError for an unknown `outtype`.

    Attributes:
        model: A Hugging Face folder, a GGUF file (of shards the first one), or the id of a model on the hub.
        spans: Which layers or KV groups share, in the syntax of `--spans`. "auto" searches for a map, until one of
            `save`, `kv_bytes`, `max_kl` and `followers` is met: over whole layers with `followers` or `align`, else
            over KV groups.
        out: The file to write, or a folder, in which the file is named by the GGUF naming convention. A name that ends
            in a slash is a folder. Only a plan (`--dry-run`) has none.
        source: The layer that a range of `spans` takes its attention weights from: its own "first" layer, or the layer
            "previous" to it, as in the paper's code.
        outtype: "auto" keeps the weights as they are; otherwise a type that llama-quantize knows, such as "Q4_K_M".
        imatrix: A file with the importance of the weights, for quantisation.
        threads: Number of threads; all processors by default.
        split_max_size: Largest number of bytes of tensors in one file; without it, there is one file.
        align: Put the heads of followers in the order that suits their source best.
        refit: Compute the output projections of changed layers again, by least squares on `text`.
        text: What `align`, `refit` and a search measure with; by default the mixture that comes with the package.
        followers: A search ends with this number of followers.
        max_kl: A search ends before the mean KL divergence from the dense model exceeds this, in nats per token.
        kv_bytes: A search ends when a token takes at most this many bytes of KV cache (f16).
        save: A search ends when this part of those bytes is saved, from 0 to 1.
        fast: A search measures less, and so finds less.
        drop: Layers and KV groups that lose their attention, in the syntax of `--drop`.
        map: A JSON file with an attention map, as a search writes it, instead of `spans` and `drop`.
        force: Overwrite an output that exists.
        llama_cpp: A checkout of llama.cpp whose converter is used instead of the pinned one.
        trust_remote_code: Let a checkpoint run its own Python code in the converter.
        revision: The branch, tag or commit of a model on the hub.
        verbose: Show what llama.cpp's converter prints.
        allow_nonfinite: Export weights that are NaN or infinite, too.
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
    save: float | None = None
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
        return Budget(self.followers, self.max_kl, self.kv_bytes, self.save)

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
