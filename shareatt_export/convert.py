"""A Hugging Face directory to a dense GGUF, by llama.cpp's own convert_hf_to_gguf.py in a child process.

The converter loads tokenizers with trust_remote_code=True, so a directory that brings code of its own is refused
here unless the user trusts it. Pickle checkpoints are never read.
"""

import json
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
from .progress import Fraction, Step
from .source import stock_source

OUTTYPES = ("AUTO", "F32", "F16", "BF16", "Q8_0")  # that the converter writes itself
INDEX = "model.safetensors.index.json"
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
    config = _config(folder)
    if not trust_remote_code and (what := own_code(folder)):
        raise Unsupported(f"{folder}: brings code of its own ({what}); if you trust it, add --trust-remote-code")
    if not list(folder.glob("model*.safetensors")):  # the converter's rule; with none it would read the pickles
        if list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth")):
            raise Unsupported(
                f"{folder}: has only pickle weights, which can run code; convert them to safetensors first"
            )
        raise BadInput(f"{folder}: no model*.safetensors in it")
    _check_shards(folder)
    n_layer = config.get("num_hidden_layers")
    return n_layer if isinstance(n_layer, int) else None


def own_code(folder: Path) -> str | None:
    """The file or field by which transformers would run code of the folder."""
    for path in sorted(folder.rglob("*.py")):
        return path.name
    configs = (_config(folder), _json(folder / "tokenizer_config.json"))
    return "auto_map in a config" if any("auto_map" in config for config in configs) else None


def _config(folder: Path) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a model: neither a GGUF file nor a folder with a config.json")
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return data


def _check_shards(folder: Path) -> None:
    """Shard names come from a file that somebody else wrote: they must stay inside the folder."""
    weight_map = _json(folder / INDEX).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise BadInput(f"{folder / INDEX}: weight_map: expected a JSON object")
    for name in {str(name) for name in weight_map.values()}:
        if Path(name).name != name or "\\" in name or not (folder / name).is_file():
            raise BadInput(f"{folder / INDEX}: weight_map: '{name}' is not a file of this folder")


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

    with tempfile.TemporaryDirectory(dir=near, prefix=".shareatt-") as work:
        out = Path(work).resolve() / "dense.gguf"
        options = [str(folder.resolve()), "--outfile", str(out), "--outtype", outtype]
        command = [sys.executable, *([] if near else ["-c", HEADER_ONLY]), str(script), *options]
        # the converter must import the gguf-py of its own source tree, never the one from PyPI
        env = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"}
        status = child.run(command, look, cwd=Path(work), env=env)
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
