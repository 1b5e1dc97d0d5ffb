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

from ..checkpoint.checks import check_checkpoint
from ..errors import ConversionFailed, RuntimeProblem, ShareattError
from ..llamacpp.source import stock_source
from ..system import child_process
from ..system.progress import Fraction, Step
from ..system.staging import private_folder

CONVERTER_TYPES = ("AUTO", "F32", "F16", "BF16", "Q8_0")  # weight types that the converter writes
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


def require_hf() -> None:
    """Raises RuntimeProblem where the extra [hf] is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RuntimeProblem(f"{missing[0]} is needed to read Hugging Face models; pip install 'shareatt-export[hf]'")


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
        status = child_process.run(command, look, cwd=work, env=env)
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
            raise error.moved(dense, model) from None


def _last_error(log: Sequence[str]) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|\w*(Error|Exception))\b", line)]
    return (errors or lines or ["failed without a word"])[-1]
