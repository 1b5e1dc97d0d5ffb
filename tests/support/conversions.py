"""Convert checkpoints with llama.cpp's real converter, without starting Python for each of them.

Its imports take seconds. So one process imports them once, and forks for each checkpoint. How the package itself
starts the converter is what tests/exporting/test_convert.py tests.

python -m tests.support.conversions CONVERTER    # that process: it reads a line of JSON for each checkpoint
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from shareatt_export.llamacpp import runtime

ROOT = Path(__file__).parents[2]


def convert(folder: Path, out: Path, outtype: str = "f32", *, known_tokenizer: bool = True) -> Path:
    """Convert a Hugging Face folder to the dense GGUF `out`, and return `out`.

    The converter recognises a BPE tokenizer by a hash of the tokens of a text. With `known_tokenizer` false, it takes
    any tokenizer for that of GPT-2. Raises RuntimeError with the converter's output.
    """
    process, log = _process(os.getpid()), out.with_suffix(".log")
    asked = {
        "arguments": [str(folder.resolve()), "--outfile", str(out.resolve()), "--outtype", outtype],
        "known_tokenizer": known_tokenizer,
        "log": str(log.resolve()),
    }
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    said = log.read_text(errors="replace") if (status := process.stdout.readline()) else "the process has ended"
    if status.strip() != "0" or not out.is_file():
        raise RuntimeError(said[-2000:])
    log.unlink()
    return out


@cache
def _process(pid: int) -> subprocess.Popen[str]:
    """Start the process that forks. `pid` is the one that asks: a forked test must not use the pipe of its parent."""
    command = [sys.executable, "-m", __name__, str(runtime.converter())]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, text=True, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve(converter: Path) -> None:
    sys.path[:1] = [str(converter.parent), str(converter.parent / "gguf-py")]
    auto = "transformers.models.auto"
    for name in ("conversion.llama", f"{auto}.configuration_auto", f"{auto}.tokenization_auto"):
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_convert(converter, asked))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _convert(converter: Path, asked: dict[str, Any]) -> int:
    """Run the converter in a forked process, and return its exit status."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not asked["known_tokenizer"]:
        sys.modules["conversion.base"].TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = [str(converter), *asked["arguments"]]
    try:
        runpy.run_path(str(converter), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
