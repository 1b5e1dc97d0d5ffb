"""A Hugging Face directory to a dense GGUF, by llama.cpp's own convert_hf_to_gguf.py in a child process.

The converter loads tokenizers with trust_remote_code=True, so a directory that brings code of its own is refused
here unless the user trusts it. Pickle checkpoints are never read.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from . import child
from .errors import BadInput, ConversionFailed, RuntimeProblem, ShareattError, Unsupported
from .facts import MAX_LAYERS
from .files import private_folder, refuse_lfs_pointer
from .progress import Fraction, Step
from .safetensors_header import damaged, read_json, tensor_names
from .source import stock_source

OUTTYPES = ("AUTO", "F32", "F16", "BF16", "Q8_0")  # that the converter writes itself
INDEX = "model.safetensors.index.json"
MAX_JSON = {INDEX: 32 << 20}  # bytes; that of the largest models has 15 MB
NEEDED = ("torch", "transformers", "sentencepiece", "safetensors")

# Runs the converter (argv[1]) with a writer that leaves tensor data away: a sparse file with everything but weights.
HEADER_ONLY = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path[:1] = [str(Path(sys.argv[0]).parent), str(Path(sys.argv[0]).parent / "gguf-py")]
from gguf import GGUFWriter

def write_no_tensors(self, *, progress=False):
    self.write_ti_data_to_file()
    for file, tensors in zip(self.fout, self.tensors):
        self.write_padding(file, file.tell())
        sizes = (self.ggml_pad(info.nbytes, self.data_alignment) for info in tensors.values())
        file.truncate(file.tell() + sum(sizes))

GGUFWriter.write_tensors_to_file = write_no_tensors
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_checkpoint(folder: Path, trust_remote_code: bool) -> int | None:
    """The number of layers, if the config tells it in the usual place.

    Raises BadInput or Unsupported where `folder` is no checkpoint that can be converted without running its code.
    """
    _check_links(folder)
    config = _config(folder)
    if not trust_remote_code and (what := own_code(folder)):
        raise Unsupported(f"{folder}: brings code of its own ({what}); if you trust it, add --trust-remote-code")
    if not list(folder.glob("model*.safetensors")):  # the converter's rule; with none it would read the pickles
        if list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth")):
            raise Unsupported(
                f"{folder}: has only pickle weights, which can run code; convert them to safetensors first"
            )
        raise BadInput(f"{folder}: no model*.safetensors in it; download them too")
    if (mask := folder / "mask_embedding.pt").exists():  # of DFlash drafts
        raise Unsupported(f"{mask}: a pickle, which the converter would read; such models cannot be exported")
    _check_shards(folder)
    n_layer = config.get("num_hidden_layers")
    if n_layer is not None and (type(n_layer) is not int or not 1 <= n_layer <= MAX_LAYERS):
        raise damaged(folder / "config.json", "num_hidden_layers", f"{n_layer} layers, 1 to {MAX_LAYERS} are possible")
    return n_layer


def own_code(folder: Path) -> str | None:
    """The file or field by which transformers would run code of the folder."""
    code = sorted(path.name for path in folder.rglob("*.py"))
    mapped = sorted(path.name for path in folder.glob("*config*.json") if "auto_map" in _json(path))
    return code[0] if code else f"auto_map in {mapped[0]}" if mapped else None


def _config(folder: Path) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a model: neither a GGUF file nor a folder with a config.json")
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    refuse_lfs_pointer(path)
    if (size := path.stat().st_size) > (limit := MAX_JSON.get(path.name, 4 << 20)):
        raise damaged(path, "JSON", f"{size} bytes, at most {limit} are possible")
    return read_json(path, path.read_bytes())


def _check_links(folder: Path) -> None:
    """Files may link to others of the folder, and in the hub's cache to its blobs, as all do there."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in inside):
            raise Unsupported(f"{path}: links to {path.resolve()}, outside of the model's folder; copy the file there")


def _check_shards(folder: Path) -> None:
    """Shards must have what the index says, no more and no less; without one, no tensor may be in two of them."""
    index = folder / INDEX
    said = _weight_map(index) if index.is_file() else None
    found: dict[str, str] = {}  # the file of each tensor
    for path in (
        sorted(folder / name for name in set(said.values())) if said else sorted(folder.glob("model*.safetensors"))
    ):
        if not path.is_file():
            raise damaged(path, "shard", "not a regular file")
        for name in sorted(tensor_names(path)):
            if name in found:
                raise damaged(path, f"tensor '{name}'", f"stands in {found[name]} too")
            found[name] = path.name
    if said is None:
        return
    for name in sorted(said.keys() | found.keys()):
        if said.get(name) != found.get(name):
            where = (
                f"'{name[:64]}' is in {said.get(name, 'no file')} by the index, in {found.get(name, 'no file')} really"
            )
            raise damaged(index, "weight_map", where)
    for path in sorted(folder.glob("model-*-of-*.safetensors")):
        if path.name not in said.values():
            raise damaged(index, "weight_map", f"{path.name} is not in it")


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor; they come from a file that somebody else wrote, and must stay inside the folder."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "weight_map", "expected a JSON object of file names")
    there = {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in map(str, weight_map.values()):
        if name not in there:
            raise damaged(index, "weight_map", f"'{name[:64]}' is not a file of this folder")
    return weight_map


def require_hf() -> None:
    """Raises RuntimeProblem where the extra [hf] is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RuntimeProblem(f"{missing[0]} is needed to read Hugging Face models; pip install 'shareatt-export[hf]'")


def checkpoint_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


@contextmanager
def converted(
    folder: Path,
    near: Path | None,
    outtype: str,
    llama_cpp: Path | None,
    verbose: bool = False,
    watch: Fraction = lambda fraction: None,
) -> Iterator[Path]:
    """The dense GGUF of a checkpoint, in a temporary folder that is gone after the block.

    The folder is made in `near`; without that, the weights are left away, and the file takes neither time nor space.
    """
    require_hf()
    script = stock_source(llama_cpp) / "convert_hf_to_gguf.py"
    log: list[str] = []

    def look(line: str) -> None:
        log.append(line)
        if verbose:
            sys.stderr.write(line)
        if done := re.match(r"Writing: +(\d+)%", line):
            watch(int(done[1]) / 100)

    with private_folder(near) as work:
        out = work.resolve() / "dense.gguf"
        options = [str(folder.resolve()), "--outfile", str(out), "--outtype", outtype]
        command = [sys.executable, *([] if near else ["-c", HEADER_ONLY]), str(script), *options]
        # the converter must import the gguf-py of its own source tree, never the one from PyPI; a stranger's folder may
        # name models that its libraries would fetch; and what they leave in the temporary folder goes with ours
        env = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"}
        env |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(work.resolve())}
        status = child.run(command, look, cwd=work, env=env)
        if status or not out.is_file():
            raise ConversionFailed(f"{folder}: convert_hf_to_gguf.py: {_last_error(log)}")
        yield out


@contextmanager
def as_gguf(model: Path, step: Step) -> Iterator[Path]:
    """The model itself if it is a file; of a checkpoint a dense GGUF, for the length of the block.

    Raises ShareattError, in which the model has its own name.
    """
    if not model.is_dir():
        yield model
        return
    check_checkpoint(model, trust_remote_code=False)
    work = Path(tempfile.gettempdir())
    with converted(model, work, "auto", None, watch=lambda fraction: step("converting", fraction)) as dense:
        try:
            yield dense
        except ShareattError as error:
            raise type(error)(str(error).replace(str(dense), str(model))) from None


def _last_error(log: Sequence[str]) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|\w*(Error|Exception))\b", line)]
    return (errors or lines or ["failed without a word"])[-1]
