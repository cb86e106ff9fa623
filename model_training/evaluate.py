"""A network and labelled cases -> the measurement that a card holds, through the very path that serves."""

import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from model_training.data import Case, read_labels
from service.bundle.card import CaseRecord, Measurement
from service.bundle.schema import ServiceConfig
from service.calibration.cohort import measure_case
from service.pipeline.calibrate import probabilities
from service.pipeline.decode import decode_scan
from service.pipeline.infer import infer
from service.pipeline.preprocess import preprocess
from service.pipeline.run import ENGINE, PRECISION


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
        records.append(measure_one(network, config, case))
        done(case)
    structures = [label.name for label in config.labels[1:]]
    return Measurement.of(ENGINE, PRECISION, this_platform(), records, structures)


def measure_one(network: nn.Module, config: ServiceConfig, case: Case) -> CaseRecord:
    """Return the sums of one case."""
    scan = decode_scan(case.image)
    _, classes = read_labels(case, config)
    image, grid = preprocess(scan, config)
    probs = probabilities(infer(network, image, config), grid, config)
    sums = measure_case(case.name, case.person, probs, probs.argmax(axis=0), classes)
    x, y, z = (round(float(mm), 4) for mm in scan.spacing_mm)
    return CaseRecord.of(sums, scan.shape, (x, y, z))


def differences(found: Measurement, stated: Measurement) -> Iterator[tuple[str, float]]:
    """Yield the name and the absolute difference of every figure that two measurements do not share exactly.

    The sums of each case are compared as well, so that equal figures by luck do not pass for equal measurements.
    """
    for name, score in found.scores.items():
        there = stated.scores[name]
        for bound in ("value", "low", "high"):
            a, b = getattr(score, bound), getattr(there, bound)
            if a != b:
                yield f"{name} {bound}", abs((a or 0.0) - (b or 0.0))
    for mine, theirs in zip(found.cases, stated.cases, strict=True):
        if mine != theirs:
            pairs = zip(mine.sum_p, theirs.sum_p, strict=True)
            yield f"sums of {mine.case}", max(abs(x - y) for row in pairs for x, y in zip(*row, strict=True))


def this_platform() -> str:
    """Return processor, instruction set and torch version of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
