"""A network and labelled cases -> the measurement that a card holds, through the very path that serves."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from model_training.data import Case, read_labels, read_scan
from service.bundle.card import CaseRecord, Measurement
from service.bundle.schema import ServiceConfig
from service.calibration.cohort import measure_case
from service.calibration.scores import ace
from service.pipeline.calibrate import probabilities
from service.pipeline.infer import infer
from service.pipeline.preprocess import preprocess
from service.pipeline.run import ENGINE, PRECISION

TOLERANCE: Final = 1e-3
"""By how much a figure may differ between processors: their float32 arithmetic rounds differently."""


def measure(
    network: nn.Module, config: ServiceConfig, cases: Sequence[Case], done: Callable[[Case], None]
) -> Measurement:
    """Return what the network scores on the cases, on their native grids.

    Args:
        network: in evaluation mode.
        config: how the bundle is served.
        cases: labelled cases that the network was not trained on.
        done: called after each case.

    Raises:
        DataError: a label file does not fit.
        ScanError: a file cannot be read.
    """
    records = []
    for case in cases:
        records += measure_one(network, config, case, [config.temperature])
        done(case)
    structures = [structure.name for structure in config.structures]
    return Measurement.of(ENGINE, PRECISION, this_platform(), records, structures)


def measure_one(
    network: nn.Module, config: ServiceConfig, case: Case, temperatures: Sequence[Sequence[float]]
) -> list[CaseRecord]:
    """Return the sums of one case, once for each choice of a temperature per class."""
    scan = read_scan(case)
    _, classes = read_labels(case, config)
    image, grid = preprocess(scan, config)
    x, y, z = (round(float(mm), 4) for mm in scan.spacing_mm)
    with _one_thread():
        logits = infer(network, image, config)
        choices = [config.model_copy(update={"temperature": temperature}) for temperature in temperatures]
        probs_by_choice = [probabilities(logits, grid, choice) for choice in choices]
    rows = [(0,), *(structure.channels for structure in config.structures)]
    records = []
    for probs in probs_by_choice:
        sums = measure_case(case.name, case.person, probs, probs.argmax(axis=0), classes, rows)
        records.append(CaseRecord.of(sums, scan.shape, (x, y, z)))
    return records


def differences(found: Measurement, stated: Measurement) -> dict[str, float]:
    """Return every figure that two measurements do not share exactly, with its absolute difference.

    The sums of each case are compared as well: equal figures by luck must not pass for an equal measurement. A case
    that differs stands under its name, with the largest difference of its ACE over the classes; infinity, if only one
    of the measurements has it.
    """
    figures, their_figures = _figures(found), _figures(stated)
    cases, their_cases = ({case.case: case for case in m.cases} for m in (found, stated))
    return {
        name: abs((value or 0.0) - (their_figures[name] or 0.0))
        for name, value in figures.items()
        if value != their_figures[name]
    } | {
        name: _distance(cases.get(name), their_cases.get(name))
        for name in cases.keys() | their_cases.keys()
        if cases.get(name) != their_cases.get(name)
    }


def _figures(measurement: Measurement) -> dict[str, float | None]:
    return {
        f"{structure} {name} {bound}": getattr(score, bound)
        for structure, scores in {"foreground": measurement.scores, **measurement.class_scores}.items()
        for name, score in scores.items()
        for bound in ("value", "low", "high")
    }


def _distance(mine: CaseRecord | None, theirs: CaseRecord | None) -> float:
    if mine is None or theirs is None:
        return float("inf")
    gap = np.abs(ace(mine.sums().histogram) - ace(theirs.sums().histogram))
    return float(np.nanmax(gap, initial=0.0))


@contextmanager
def _one_thread() -> Iterator[None]:
    # How a convolution is split over threads decides how it is rounded: one thread is the same on every machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def this_platform() -> str:
    """Return processor, instruction set and torch version of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
