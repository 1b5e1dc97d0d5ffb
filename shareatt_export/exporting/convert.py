"""Convert a Hugging Face folder to a dense GGUF with llama.cpp's own convert_hf_to_gguf.py, in a child process.

The converter loads tokenizers with trust_remote_code=True, so callers check the folder first (checkpoint/checks.py).
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..checkpoint.checks import check_files, check_no_code
from ..errors import ConversionFailed, RuntimeProblem, ShareattError
from ..llamacpp.runtime import converter
from ..system import child_process
from ..system.progress import Fraction, Step
from ..system.staging import private_folder

CONVERTER_TYPES = ("AUTO", "F32", "F16", "BF16", "Q8_0")  # weight types that the converter writes
NEEDED = ("torch", "transformers", "sentencepiece", "safetensors")

# Runs the converter (argv[1]) with a writer that writes no tensor data: the file is sparse and has all but the weights.
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
    """Raises RuntimeProblem if the extra [hf] is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RuntimeProblem(
            f"{missing[0]} is needed to read Hugging Face models", next_step="pip install 'shareatt-export[hf]'"
        )


@contextmanager
def converted(
    folder: Path,
    near: Path | None,
    outtype: str,
    llama_cpp: Path | None,
    verbose: bool = False,
    watch: Fraction = lambda fraction: None,
) -> Iterator[Path]:
    """Yield the dense GGUF of a checkpoint, in a temporary folder that is removed after the block.

    The folder is made in `near`. Without `near` the file has no weights, and takes neither time nor space.
    Raises ConversionFailed with the converter's reason.
    """
    require_hf()
    script = converter(llama_cpp)
    log: list[str] = []

    def read_line(line: str) -> None:
        log.append(line)
        if verbose:
            sys.stderr.write(line)
        if done := re.match(r"Writing: +(\d+)%", line):
            watch(int(done[1]) / 100)

    with private_folder(near) as work:
        out = work.resolve() / "dense.gguf"
        options = [str(folder.resolve()), "--outfile", str(out), "--outtype", outtype]
        command = [sys.executable, *([] if near else ["-c", HEADER_ONLY]), str(script), *options]
        # The converter must import the gguf-py of its own source tree, never the installed one. A stranger's folder
        # may name models that its libraries would fetch. TMPDIR: what the libraries leave behind is removed with ours.
        env = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"}
        env |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(work.resolve())}
        status = child_process.run(command, read_line, cwd=work, env=env)
        if status or not out.is_file():
            raise ConversionFailed(_last_error(log), path=folder, field="convert_hf_to_gguf.py")
        yield out


@contextmanager
def as_gguf(model: Path, step: Step) -> Iterator[Path]:
    """Yield the model itself if it is a file, else the dense GGUF of a checkpoint, which is removed after the block.

    A ShareattError about that GGUF that the block raises becomes one about the model.
    """
    if not model.is_dir():
        yield model
        return
    check_files(model)
    check_no_code(model)
    work = Path(tempfile.gettempdir())
    with converted(model, work, "auto", None, watch=lambda fraction: step("converting", fraction)) as dense:
        try:
            yield dense
        except ShareattError as error:
            raise error.moved(dense, model) from None


def _last_error(log: Sequence[str]) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|\w*(Error|Exception))\b", line)]
    return (errors or lines or ["failed without a message"])[-1]
