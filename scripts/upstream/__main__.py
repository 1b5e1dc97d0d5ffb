"""Run llama.cpp's own tests on the unpatched library, on the patched one, and on the patched one with SA models.

    python -m scripts.upstream                      # the normal build
    python -m scripts.upstream --sanitize address   # with AddressSanitizer and UndefinedBehaviorSanitizer
    python -m scripts.upstream --sanitize thread    # test-thread-safety with ThreadSanitizer

It prints a table of unpatched, patched and SA results. The exit status is 1 if the patch changes the result of a dense
model, if an SA model has a problem that its dense model does not have without the patch, or if the unpatched results
differ from docs/upstream-tests.json. --write records them there and in docs/upstream-tests.md.
"""

import argparse
import datetime
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.upstream import record
from scripts.upstream.build import OPTIONS, TESTS, build
from scripts.upstream.cases import CASES, PLAIN, REFUSED, Case
from scripts.upstream.models import Kitchen, Model, make_bad, make_models
from scripts.upstream.outcome import Outcome, run
from scripts.upstream.record import Results, Row
from shareatt_export.errors import ShareattError
from shareatt_export.llamacpp.pin import patch_id, pin
from shareatt_export.system.progress import Step

ARCHS = "test-llama-archs"  # makes upstream's dummy models


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress_of(tree: str) -> Step:
    said = set()

    def progress(what: str, fraction: float | None) -> None:
        line = f"{tree}: {what}" + (f", {int(fraction * 10)}0 %" if fraction is not None else "")
        if line not in said:
            say(line)
        said.add(line)

    return progress


class Bench:
    """The programs, the models, and a folder for all output."""

    def __init__(self, sanitize: str, programs: set[str], work: Path) -> None:
        targets = tuple(name for name in TESTS if name in programs | {ARCHS})
        self.unpatched, self.patched = (
            build(patched, sanitize, targets, progress_of("patched" if patched else "unpatched"))
            for patched in (False, True)
        )
        say("making the models")
        self.work, self.kitchen = work, Kitchen(work, self.unpatched / ARCHS)
        self.models = list(make_models(self.kitchen))

    def row(self, case: Case) -> Row:
        """Run a test with every model on every build; a test without a model has no SA column."""

        def outcome(bin: Path, model: Model | None) -> Outcome:
            dummies = self.kitchen.dummies() if case.dummies else None
            return run(case.typed(bin, model, dummies), self.work).outcome()

        row = Row()
        alone: list[tuple[Model | None, list[Model]]] = [(None, [])]
        for dense, shared in self.models if case.per_model else alone:
            if dense and not case.takes(dense.recipe):
                continue
            name = dense.name if dense else ""
            row.columns["unpatched"][name] = outcome(self.unpatched, dense)
            row.columns["patched"][name] = outcome(self.patched, dense)
            row.columns["SA"] |= {model.name: outcome(self.patched, model) for model in shared}
        return row

    def refusals(self) -> Row:
        row = Row()
        for name, path, message in make_bad(self.work):
            ran = run([str(self.patched / REFUSED.split()[0]), str(path)], self.work)
            problems = ran.outcome().problems
            if not re.search(rf"error loading model: .*{re.escape(message)}", ran.output):
                problems |= {f"not refused with '{message}'"}
            row.columns["SA"][name] = Outcome("", problems)
        return row


def same(one: Outcome, other: Outcome) -> bool:
    """Return whether two outcomes are the same. A program may lose its last log line, so a missing count is ignored."""
    return one.problems == other.problems and (one.count == other.count or not (one.count and other.count))


def regressions(rows: dict[str, Row], exact: bool, twins: dict[str, str]) -> Iterator[str]:
    """Yield results that are worse than unpatched.

    `exact`: two runs of one program must be equal, as without a sanitizer.
    """
    for command, row in rows.items():
        unpatched, patched = row.columns["unpatched"], row.columns["patched"]
        for model, outcome in patched.items():
            if not same(outcome, unpatched[model]) if exact else (outcome.problems - row.problems("unpatched")):
                yield f"{command}: {model}: patched: {outcome}; unpatched: {unpatched[model]}"
        for model, outcome in row.columns["SA"].items():
            known = row.problems("unpatched")
            if exact and model in twins:
                known = unpatched[twins[model]].problems
            if new := outcome.problems - known:
                yield f"{command}: SA {model}: {'; '.join(sorted(new))}"


def moved(rows: dict[str, Row], recorded: Results | None) -> Iterator[str]:
    """Yield unpatched results that differ from the recorded ones."""
    if recorded is None or recorded.llama_cpp != pin().llama_cpp_commit:
        return
    for command, row in rows.items():
        if command in recorded.rows:
            before = recorded.rows[command].columns["unpatched"]
            for model, outcome in row.columns["unpatched"].items():
                if model in before and not same(before[model], outcome):
                    yield f"{command}: {model}: unpatched: {outcome}; recorded: {before[model]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", choices=list(OPTIONS), default=PLAIN)
    parser.add_argument("--only", metavar="REGEX", help="only the tests whose command has it")
    parser.add_argument("--list", action="store_true", help="print the tests' commands and end")
    parser.add_argument("--write", action="store_true", help="record the results in docs/upstream-tests.*")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write is for the whole list of tests")
    cases = [case for case in CASES if args.sanitize in case.sanitize and re.search(args.only or "", case.command)]
    refusals = args.sanitize != "thread" and bool(re.search(args.only or "", REFUSED))
    if args.list:
        print("\n".join([case.command for case in cases] + [REFUSED] * refusals))
        return 0

    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="upstream-tests-") as work:
        programs = {case.program for case in cases} | ({REFUSED.split()[0]} if refusals else set())
        bench = Bench(args.sanitize, programs, Path(work))
        for case in cases:
            start = time.monotonic()
            rows[case.command] = bench.row(case)
            say(f"{time.monotonic() - start:5.0f} s  {case.command}")
        if refusals:
            rows[REFUSED] = bench.refusals()
        twins = {model.name: dense.name for dense, shared in bench.models for model in shared}
    print("\n".join(record.table(rows)))

    recorded = record.load()
    bad = list(regressions(rows, args.sanitize == PLAIN, twins))
    if args.write:
        command = "scripts/run_upstream_tests.sh" + (f" --sanitize {args.sanitize}" if args.sanitize != PLAIN else "")
        today = datetime.date.today().isoformat()
        recorded[args.sanitize] = Results(today, command, pin().llama_cpp_commit, patch_id(), rows)
        record.save(recorded)
    elif args.sanitize == PLAIN:
        bad += moved(rows, recorded.get(PLAIN))
    for line in bad:
        say(f"Error: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ShareattError as error:
        sys.exit(f"Error: {error}")
