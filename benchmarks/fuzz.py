"""Sends mutants of every format through the real check and the real decoder: `python benchmarks/fuzz.py`.

Each mutant has a number, from which it is made again. A run takes the next ones after those that docs/results/fuzz.json
counts, so that counts of several runs add up; `--again FORMAT NUMBER` repeats one. A mutant is either refused with a status
below 500 and a message without the file's text, or decoded. A decoder that dies or is too late is counted: its client sees
422. Of the first mutants it measures, in this process, which branches of the header checks they reach.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from fuzz_files import CANARY, FORMATS, GENERATION, mutant

from service.errors import CalibrantError
from service.intake.sandbox import Limits, check_sandboxed, decode_sandboxed, start_sandbox

RESULTS: Final = Path(__file__).parents[1] / "docs" / "results" / "fuzz.json"
"""Counts of all runs."""

GOAL: Final = 100_000
"""Mutants of each format, over all runs."""

LIMITS: Final = Limits(memory_bytes=4 << 30, seconds=20)
"""Of a decoder here: a mutant has a few kB."""

CHECKS: Final = ("service/intake/formats/*", "service/intake/dicom/*", "service/intake/decode.py")
"""Modules whose branches are counted."""

NO_CHECKS: Final = tuple(f"service/intake/dicom/{name}.py" for name in ("header", "selection", "source"))
"""Beside them: what is kept of a header, and what reads one when a series is chosen."""

_COVERAGE: Final = [sys.executable, "-m", "coverage"]
_DEATHS: Final = ("decoder-crashed", "decoder-deadline")
_SERVER_FAULT: Final = 500
_AT_A_TIME: Final = 200


class Outcome(NamedTuple):
    """What became of a mutant.

    Args:
        name: `decoded`, or the code of the refusal.
        bad: what must not be: a status of 500 or more, or a message with the file's text; empty if all is well.
        seconds: that it took.
    """

    name: str
    bad: str
    seconds: float


def outcome_of(form: str, number: int, folder: Path) -> Outcome:
    """Return what becomes of a mutant that is checked and, if that finds no fault, decoded."""
    path = folder / f"{form}-{number}"
    path.write_bytes(mutant(form, number))
    started = time.monotonic()
    try:
        check_sandboxed(path)
        decode_sandboxed(path, LIMITS)
    except CalibrantError as error:
        bad = str(error.status) if error.status >= _SERVER_FAULT else "canary" if CANARY in error.detail else ""
        return Outcome(error.code, bad, time.monotonic() - started)
    except Exception as error:  # noqa: BLE001 - it would be a 500 of the service
        return Outcome(type(error).__name__, type(error).__name__, time.monotonic() - started)
    finally:
        path.unlink()
    return Outcome("decoded", "", time.monotonic() - started)


def run(form: str, numbers: range, workers: int) -> dict[str, Any]:
    """Return the counts of some mutants of a format."""
    counts: Counter[str] = Counter()
    bad: list[str] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda number: outcome_of(form, number, Path(folder)), numbers)
        for number, outcome in zip(numbers, outcomes, strict=True):
            counts[outcome.name] += 1
            seconds.append(outcome.seconds)
            if outcome.bad:
                bad.append(f"{number}: {outcome.bad}")
    return {
        "mutants": len(numbers),
        "decoded": counts.pop("decoded", 0),
        "refused": sum(counts.values()),
        "decoder died or was late": sum(counts[name] for name in _DEATHS),
        "bad": bad,
        "slowest s": round(max(seconds, default=0), 2),
        "refusals": dict(sorted(counts.items())),
    }


def added(earlier: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a format with those of a run added."""
    refusals = Counter(earlier.get("refusals", {})) + Counter(counts["refusals"])
    total = {name: earlier.get(name, 0) + counts[name] for name in counts if isinstance(counts[name], int)}
    slowest = max(earlier.get("slowest s", 0), counts["slowest s"])
    return total | {
        "bad": [*earlier.get("bad", []), *counts["bad"]],
        "slowest s": slowest,
        "refusals": dict(sorted(refusals.items())),
    }


def branch_coverage(mutants: int, formats: Iterable[str]) -> str:
    """Return coverage's table of the lines and branches of the header checks that the first mutants reach.

    A process of its own measures: it must begin before the modules are imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Without the project's own configuration, which counts the whole service.
        data = ["--rcfile=/dev/null", f"--data-file={folder}/coverage"]
        root = RESULTS.parents[2]
        run_it = [
            *_COVERAGE,
            "run",
            *data,
            "--branch",
            f"--include={','.join(CHECKS)}",
            f"--omit={','.join(NO_CHECKS)}",
        ]
        reader = Path(__file__).with_name("fuzz_reach.py")
        subprocess.run([*run_it, reader, str(mutants), *formats], check=True, cwd=root)
        report = [*_COVERAGE, "report", *data, "--show-missing", "--skip-empty"]
        return subprocess.run(report, check=True, cwd=root, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Run, print and write the counts; return 1 if anything was bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "mutants", nargs="?", type=int, default=10_000, help="of each format, after those counted already"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--coverage", type=int, default=3000, help="mutants of each format whose branches are counted")
    parser.add_argument(
        "--again", nargs=2, metavar=("FORMAT", "NUMBER"), help="repeat one mutant and print what becomes of it"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    start_sandbox()
    if options.again:
        form, number = options.again
        with tempfile.TemporaryDirectory() as folder:
            print(outcome_of(form, int(number), Path(folder)))
        return 0
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if results.get("generation") != GENERATION:
        print("No counts of these mutants were found: they begin at 0.")
        results |= {"generation": GENERATION, "mutants": {}}
    counted: dict[str, Any] = results["mutants"]
    for form in options.formats:
        _run_on(form, counted, options)
        options.results.write_text(json.dumps(results, indent=2) + "\n")
    if options.coverage:
        table = branch_coverage(options.coverage, options.formats)
        print("Lines and branches of the header checks that they reach:", table, sep="\n")
    bad = [f"{form} {one}" for form in options.formats for one in counted[form]["bad"]]
    for one in bad:
        print("BAD", one)
    return 1 if bad else 0


def _run_on(form: str, counted: dict[str, Any], options: argparse.Namespace) -> None:
    """Count the next mutants of a format, a few at a time, so that an interrupted run is not lost."""
    left = options.mutants
    while left > 0:
        first = counted.get(form, {}).get("mutants", 0)
        numbers = range(first, first + min(left, _AT_A_TIME))
        counted[form] = added(counted.get(form, {}), run(form, numbers, options.workers))
        left -= len(numbers)
    of_all = counted[form]
    n, bad = of_all["mutants"], len(of_all["bad"])
    bound = f"0 of {n} bounds it at {3 / n:.1e} a file (95 %, rule of three)" if not bad else f"{bad} of {n}"
    died = of_all["decoder died or was late"]
    print(
        f"{form}: {n} of {GOAL} mutants; bad: {bound}; decoder died or was late: {died}; {of_all['decoded']} decoded",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
