"""The outcome of a run of a test program: its count of tests, and problems in words that are the same in every run."""

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 1800  # seconds; without a sanitizer, every test takes less than a tenth of it
FOUND = 99  # exit status of a program in which a sanitizer found something
ENV = dict.fromkeys(("ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS"), f"exitcode={FOUND}")
ENV["GGML_NO_BACKTRACE"] = "1"  # gdb would print it at an abort, which takes ten seconds
ENV["OMP_WAIT_POLICY"] = "passive"  # threads that spin at barriers take minutes on a busy machine
COUNT = re.compile(r"\d+/\d+ tests passed|all \d+ test\(s\) passed|\d+ passed(?:, \d+ skipped)?, \d+ failed \(of \d+\)")
SUB_TEST = re.compile(r"^=== Test (\d+): .*?(?=^=== Test |\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^(\S+\.gguf) .*\bFAIL\b", re.MULTILINE)
ABORT = re.compile(r"^\S+\.(?:c|cpp|h|hpp):\d+: (.+)$", re.MULTILINE)  # the output of GGML_ABORT and GGML_ASSERT
UNDEFINED = re.compile(r"([\w.+-]+):\d+:\d+: runtime error: (.*)")
HEAD = r"ERROR: AddressSanitizer: |WARNING: ThreadSanitizer: |(?:Direct|Indirect) (?=leak )"
REPORT = re.compile(rf"(?:{HEAD})([A-Za-z-]+(?: race| leak)?)(.*?)(?={HEAD}|^SUMMARY: |\Z)", re.MULTILINE | re.DOTALL)
FRAME = re.compile(r"^ +#\d+ (?:0x\w+ in )?(.+?) (?:\S*/)?llama\.cpp/(\S+?):\d+", re.MULTILINE)
NUMBER = re.compile(r"\b0x[0-9a-f]+|-?\b\d[\d.e+]*\b")


@dataclass(frozen=True)
class Outcome:
    count: str
    problems: frozenset[str]

    def __str__(self) -> str:
        return "; ".join(sorted(self.problems)) or f"pass{self.count and f' ({self.count})'}"


@dataclass(frozen=True)
class Run:
    status: int | None  # negative: the signal that killed it; None: it did not end
    output: str

    def outcome(self) -> Outcome:
        found = findings(self.output)
        problems = set(found)
        if self.status is None:
            problems.add(f"no end within {TIMEOUT} s")
        elif self.status and not (found and self.status == FOUND):
            problems.add(_failure(self.status, self.output))
        return Outcome("; ".join(COUNT.findall(self.output)), frozenset(problems))


def run(command: list[str], folder: Path) -> Run:
    """Run a test program, which may write into `folder`."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Run(None, "")
    return Run(done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))


def _failure(status: int, output: str) -> str:
    """Name a failure: the sub-test that ran last before a crash, or the sub-tests without PASS.

    With a corrupted heap, signals and assertions differ from run to run, so they are not part of the name of a crash.
    """
    sub_tests = list(SUB_TEST.finditer(output))
    if status < 0:
        if sub_tests:
            return f"crash in sub-test {sub_tests[-1][1]}"
        reasons = ABORT.findall(output)
        return signal.Signals(-status).name + (f": {reasons[-1]}" if reasons else "")
    failed = [test[1] for test in sub_tests if test[1] != "1" and not re.search(r"^PASS", test[0], re.MULTILINE)]
    what = [f"sub-test {number}" for number in failed] + ROW.findall(output)
    return f"exit status {status}" + (f", FAIL: {', '.join(what)}" if what else "")


def findings(output: str) -> set[str]:
    """Return the sanitizer findings by kind and first function in llama.cpp, without lines, addresses and values."""
    found = {f"UBSan: {file}: {NUMBER.sub('N', text)}" for file, text in UNDEFINED.findall(output)}
    for report in REPORT.finditer(output):
        frame = FRAME.search(report[2])
        place = f"{Path(frame[2]).name}: {frame[1].split('(')[0]}" if frame else "outside llama.cpp"
        found.add(f"{report[1]}: {place}")
    return found
