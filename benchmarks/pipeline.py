"""Time, memory and agreement of our pipeline and one made of MONAI's parts: `python benchmarks/pipeline.py`.

They take turns on the same scans and weights, each pass in a fresh process; figures are medians. The phantoms' networks are
trained the first time (docs/results/speed.md says how long that takes). Only the folder of the data sets is needed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from agreement import agreement, dsc, mask_of
from page import PAGE, publish, table
from passes import SAME_FILES, STOCK
from subjects import CACHE, Subject, cardiac, ct, hippocampus

from model_training.evaluation.evaluate import this_platform
from model_training.evaluation.verify import verify
from model_training.recipes import RECIPES
from service.bundle.description import describe_bundle
from service.bundle.engine_kind import ENGINE_KINDS, REFERENCE
from service.bundle.overlay import measurements_of
from service.engines.machine import available
from service.executors.embedded import ENVIRONMENT
from service.result.files import MASK

HERE = Path(__file__).parent
STATE = CACHE / "state"
STAGES = ("decode", "preprocess", "infer", "calibrate", "encode", "store")
Pass = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a subject is measured."""

    title: str
    subject: Callable[[Path], Subject]
    rounds: int
    repeats: int
    """Passes in one process; the first is a warm-up, unless it is the only one."""
    slow: bool = False
    """Leave out torch in float32, which takes minutes and is measured on the smaller network."""


PLANS = {
    "hippocampus": Plan("hippocampus crop, shipped bundle", hippocampus, 3, 12),
    "cardiac": Plan("cardiac MR, acdc17-small", cardiac, 3, 8),
    "ct4": Plan("512 x 512 x 100, 4 classes, SegResNet16", lambda _data: ct(4), 2, 1),
    "ct16": Plan("512 x 512 x 100, 16 classes, SegResNet16", lambda _data: ct(16), 2, 1, slow=True),
}


def main() -> None:
    """Print the tables, and write them to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", "../shared/data")))
    parser.add_argument("--subjects", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--rounds", type=int, help="instead of each subject's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the tables to docs/results/speed.md")
    arguments = parser.parse_args()
    page = PAGE if arguments.write else None
    machine = f"{this_platform()}, {platform.system()}, {os.cpu_count()} cores; {arguments.threads} thread a pass."
    publish("Machine of the pipeline's tables", machine, page)
    for name in arguments.subjects:
        plan = PLANS[name]
        subject = plan.subject(arguments.data)
        names = engines_of(subject, plan, arguments.data)
        measured = run_in_turn(name, subject, plan, names, arguments.rounds or plan.rounds, arguments.threads)
        publish(f"{plan.title}: time and memory", timing_table(measured), page)
        publish(f"{plan.title}: agreement", agreement_table(name, subject, names, measured), page)
    if "cardiac" in arguments.subjects:
        publish("acdc17-small, one window: what rewriting brings", rewriting_table(cardiac(arguments.data)), page)
    if "ct4" in arguments.subjects:
        publish("SegResNet16, one window of 96 x 96 x 96: fraction of the limit", limit_table(ct(4)), page)


def engines_of(subject: Subject, plan: Plan, data: Path) -> list[str]:
    """Return the names of the pipelines to compare; measure the engines that the bundle's card lacks first."""
    bundle = describe_bundle(subject.bundle)
    here = available(torch.device("cpu"))
    for engine_kind in here:
        if engine_kind not in measurements_of(bundle, STATE):
            folder = {"hippocampus-mr": "Task04_Hippocampus", "acdc17-small": "ACDC"}[bundle.config.name]
            recipe = RECIPES[bundle.config.name.removesuffix("-mr")]
            verify(subject.bundle, recipe, data / folder, engine_kind, STATE, lambda _case: None)
    left_out = [REFERENCE] if plan.slow and len(here) > 1 else []
    names = [
        engine_kind.name
        for engine_kind in reversed(ENGINE_KINDS.values())
        if engine_kind in here and engine_kind not in left_out
    ]
    return [STOCK, *names, names[-1] + SAME_FILES]


def run_in_turn(key: str, subject: Subject, plan: Plan, names: list[str], rounds: int, threads: int) -> dict[str, Pass]:
    """Return the median of each figure by pipeline; in each round the pipelines take turns."""
    passes_of: dict[str, list[Pass]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, str(HERE / "passes.py"), name, str(subject.scan), str(subject.bundle)]
            command += [str(out_of(key, name)), str(plan.repeats), str(threads), str(STATE)]
            printed = subprocess.run(command, capture_output=True, text=True, env=as_served(threads), check=False)
            if printed.returncode:
                raise SystemExit(printed.stderr)
            passes = [json.loads(line) for line in printed.stdout.splitlines() if line.startswith('{"seconds"')]
            passes_of[name] += passes[min(1, plan.repeats - 1) :]
    return {name: _median(passes) for name, passes in passes_of.items()}


def as_served(threads: int) -> dict[str, str]:
    """Return the environment of the service's inference process with this many threads; stock's passes get it, too."""
    return os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}


def _median(passes: list[Pass]) -> Pass:
    seconds = {stage: statistics.median(one["seconds"].get(stage, 0.0) for one in passes) for stage in STAGES}
    return {"seconds": seconds} | {
        name: statistics.median(one[name] for one in passes) for name in ("total", "cpu", "peak_mb")
    }


def out_of(key: str, name: str) -> Path:
    """Return the folder of a pipeline's results."""
    return CACHE / "out" / key / name.replace(" ", "-")


def timing_table(measured: dict[str, Pass]) -> str:
    """Return the table of seconds per stage, in total and around the network, and of memory, with ratios to stock."""
    stock = measured[STOCK]

    def around(one: Pass) -> float:
        return float(one["total"] - one["seconds"]["infer"])

    rows = [
        [
            name,
            *(f"{figures['seconds'][stage]:.3f}" for stage in STAGES),
            f"{figures['total']:.2f}",
            f"{stock['total'] / figures['total']:.2f}x",
            f"{around(figures):.2f}",
            f"{around(stock) / around(figures):.1f}x",
            f"{figures['cpu']:.2f}",
            f"{figures['peak_mb']:.0f}",
            f"{figures['peak_mb'] / stock['peak_mb']:.2f}x",
        ]
        for name, figures in measured.items()
    ]
    return table(
        [
            "pipeline",
            *STAGES,
            "total, s",
            "faster",
            "around the network, s",
            "faster",
            "CPU, s",
            "peak, MiB",
            "of stock",
        ],
        rows,
    )


def agreement_table(key: str, subject: Subject, names: list[str], measured: dict[str, Pass]) -> str:
    """Return the table of agreement of each engine with stock, with float32 and with the reference."""
    values = describe_bundle(subject.bundle).config.labels
    (stock_file,) = out_of(key, STOCK).glob("*_mask.nii.gz")
    stock = mask_of(stock_file)
    ours = [name for name in names if name in ENGINE_KINDS]
    fp32 = out_of(key, next(name for name in ours if ENGINE_KINDS[name].precision == "fp32"))
    rows = []
    for name in ours:
        agreed = agreement(out_of(key, name), fp32, subject.reference)
        same = dsc(mask_of(out_of(key, name) / MASK), stock, _array(values))
        row = [f"{same:.5f}", f"{agreed.dsc_fp32:.5f}", f"{agreed.max_dp:.4f}", f"{agreed.mean_dp:.1e}"]
        row += [f"{score:.4f}" for score in (agreed.dsc, agreed.ace, agreed.ece)]
        rows.append([name, *row, f"{measured[name]['total']:.2f}"])
    reference = dsc(stock, mask_of(subject.reference), _array(values))
    rows.insert(0, [STOCK, "1", "", "", "", f"{reference:.4f}", "", "", f"{measured[STOCK]['total']:.2f}"])
    head = ["pipeline", "DSC with stock", "DSC with fp32", "max dp", "mean dp", "DSC", "ACE", "ECE", "s per case"]
    return table(head, rows)


def _array(labels: Any) -> Any:  # noqa: ANN401 - a script
    import numpy as np

    return np.array([label.value for label in labels])


def rewriting_table(subject: Subject) -> str:
    """Return the table of milliseconds per window on one thread, by engine and form of the network."""
    from rewritten import FORMS  # loads OpenVINO, which is optional

    command = [sys.executable, str(HERE / "rewritten.py"), str(subject.bundle)]
    printed = subprocess.run(command, capture_output=True, text=True, env=as_served(1), check=True).stdout
    rows = [
        [engine, *(f"{times[form]:.1f}" if form in times else "" for form in FORMS)]
        for engine, times in json.loads(printed.splitlines()[-1]).items()
    ]
    return table(["engine, ms per window", *FORMS], rows)


def limit_table(subject: Subject) -> str:
    """Return the table of seconds per window and of the fraction of the matrix product's speed, on one and two threads."""
    rows = []
    for threads in (1, 2):
        command = [sys.executable, str(HERE / "peak.py"), str(subject.bundle), str(threads)]
        printed = subprocess.run(command, capture_output=True, text=True, env=as_served(threads), check=True).stdout
        for name, speed in json.loads(printed.splitlines()[-1]).items():
            row = [f"{speed['seconds']:.3f}", f"{speed['gflops']:.0f}", f"{speed['limit']:.0f}"]
            rows.append([name, str(threads), *row, f"{speed['fraction']:.0%}"])
    return table(["engine", "threads", "s per window", "GFLOP/s", "matrix product, GFLOP/s", "fraction"], rows)


if __name__ == "__main__":
    main()
