"""Runs `calibrant batch`: finds the cases, segments them, writes the tables and reports what is left."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from service.commands.batch.case import BatchCase, FoundCases
from service.commands.batch.journal import Journal, Shard
from service.commands.batch.progress import display
from service.commands.batch.results import describe_folder
from service.commands.batch.run import Batch, Tally, shard_of
from service.commands.batch.segmenter import Local, Remote, Segmenter
from service.commands.batch.source import find_cases
from service.commands.batch.table import write_tables
from service.errors import SourceError
from service.schemas import RESEARCH_USE_ONLY, Accept

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The options of the command line.

    Args:
        source: source of the cases, as for `find_cases`.
        out: folder of the results.
        url: address of a running service; None to compute on this machine.
        model: name, or name@sha256; the default model if None.
        jobs: cases in flight at a service.
        shard: part of the cases.
        pattern: pattern of the file names to take.
        dry_run: only show what would be done.
        retry_failed: also repeat cases that failed because of their scan.
        parquet: also write the tables as Parquet.
        accept: which scans are segmented.
    """

    source: Path
    out: Path
    url: str | None = DEFAULT_URL
    model: str | None = None
    jobs: int = 4
    shard: Shard = field(default_factory=Shard)
    pattern: str = "*"
    dry_run: bool = False
    retry_failed: bool = False
    parquet: bool = False
    accept: Accept = "stated"


def run_command(request: BatchRequest, console: Console) -> int:
    """Segment the cases and return the exit code.

    Raises:
        SourceError: the source cannot be used, or holds no case.
        CalibrantError: an error that ends the batch; finished cases are recorded, and the next run goes on from there.
    """
    selection = find_cases(request.source, request.out, request.pattern)
    if request.dry_run:
        _show_selection(selection, request, console)
    if not selection.cases:
        msg = f"No case was found in {request.source}, {len(selection.skipped)} files were left out. --dry-run shows which and why."
        raise SourceError(msg)
    if request.dry_run:
        return 0
    cases = shard_of(selection.cases, request.shard)
    with _segmenter(request) as segmenter:
        console.print(_heading(cases, selection, segmenter, request), highlight=False, markup=False, soft_wrap=True)
        tally = _run(cases, segmenter, request, console)
    _conclude(tally, cases, request, console)
    return tally.exit_code


def _segmenter(request: BatchRequest) -> Segmenter:
    if request.url is None:
        return Local(request.model, request.accept)
    return Remote(request.url, request.model, request.accept)


def _run(cases: list[BatchCase], segmenter: Segmenter, request: BatchRequest, console: Console) -> Tally:
    with Journal.open(request.out, request.shard) as journal:
        describe_folder(request.out)
        try:
            with display(console, len(cases)) as shown:
                jobs = segmenter.size or request.jobs
                batch = Batch(request.out, segmenter, journal, shown, jobs, request.retry_failed, request.accept)
                return batch.run(cases)
        except BaseException:
            console.print(f"Go on with: {_again()}", highlight=False, markup=False, soft_wrap=True)
            raise
        finally:
            write_tables(request.out, parquet=request.parquet)


def _heading(cases: list[BatchCase], selection: FoundCases, segmenter: Segmenter, request: BatchRequest) -> str:
    shard = request.shard
    part = f", shard {shard.index} of {shard.count}" if shard.count > 1 else ""
    where = "on this machine" if request.url is None else f"at {request.url}"
    left_out = f", {len(selection.skipped)} files left out" if selection.skipped else ""
    return f"{len(cases)} cases{part}{left_out}; {segmenter.identity} {where}. {RESEARCH_USE_ONLY}"


def _conclude(tally: Tally, cases: list[BatchCase], request: BatchRequest, console: Console) -> None:
    succeeded = len(tally.lines) - len(tally.failed)
    left = len(cases) - len(tally.lines)
    before = f" ({len(tally.before)} cases were done before)" if tally.before else ""
    lines = [f"{succeeded} of {len(cases)} cases succeeded, {len(tally.failed)} failed, {left} are left{before}."]
    lines += [f"  {line.case}: {line.problem.title}: {line.problem.detail}" for line in tally.failed if line.problem]
    withdrawn = sum(line.statement == "withdrawn" for line in tally.lines.values())
    if withdrawn:
        lines.append(
            f"{withdrawn} results are WITHDRAWN: their masks are not to be trusted; the column reasons says why."
        )
    lines.append(f"Tables: {request.out / 'cases.csv'}, {request.out / 'structures.csv'}")
    if left:
        lines.append(f"Go on with: {_again()}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _show_selection(selection: FoundCases, request: BatchRequest, console: Console) -> None:
    table = Table(*(Column(name, overflow="fold") for name in ("case", "file", "results")))
    for case in shard_of(selection.cases, request.shard):
        files = str(case.files[0]) if len(case.files) == 1 else f"{case.files[0].parent} ({len(case.files)} files)"
        table.add_row(case.id, files, f"{case.folder}/")
    for skipped in selection.skipped:
        table.add_row("-", str(skipped.path), f"left out: {skipped.reason}")
    console.print(table)
    console.print(f"{len(selection.cases)} cases, {len(selection.skipped)} files left out.", highlight=False)


def _again() -> str:
    return shlex.join(["calibrant", *sys.argv[1:]])
