"""Measures a network on labelled cases, with the same preprocessing, inference and calibration as serving.

A measurement is what a card holds; an evaluation adds surface distances and what a reader of results needs to know.
"""

import datetime as dt
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model_training.config import Recipe
from model_training.data.case import Case, read_case
from model_training.evaluation.surfaces import SurfaceScores, structure_surfaces
from service.bundle.card import CaseRecord, Measurement, Population, Precision
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.reader import LoadedBundle
from service.bundle.schema import ServiceConfig, StructureChannels
from service.calibration.cohort import measure_case
from service.calibration.scores import ace
from service.engines.machine import device_kind, device_of
from service.pipeline.infer import infer
from service.pipeline.predict import probabilities
from service.pipeline.preprocess import preprocess
from service.volume import Volume

CPU: Final = torch.device("cpu")

TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Allowed difference of a figure between processors, which round differently: docs/engines.md."""


@dataclass(frozen=True, slots=True, eq=False)
class CasePrediction:
    """Prediction and reference of a labelled case on the native grid.

    Args:
        case: the labelled case.
        probs_CDHW: (C, D, H, W) float32 calibrated probabilities.
        mask_DHW: (D, H, W) uint8, the predicted class of each voxel (argmax).
        reference_DHW: (D, H, W) uint8, the true class of each voxel.
        spacing_mm: voxel spacing along the three axes, rounded to 0.1 um.
    """

    case: Case
    probs_CDHW: npt.NDArray[np.float32]
    mask_DHW: npt.NDArray[np.uint8]
    reference_DHW: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]

    def record(self, structures: Sequence[StructureChannels]) -> CaseRecord:
        """Return the sums of this case that a card holds."""
        rows = [(0,), *(structure.channels for structure in structures)]
        d, h, w = self.mask_DHW.shape
        sums = measure_case(self.case.name, self.case.person, self.probs_CDHW, self.mask_DHW, self.reference_DHW, rows)
        return CaseRecord.of(sums, (d, h, w), self.spacing_mm)


@dataclass(kw_only=True, slots=True, frozen=True)
class Evaluation:
    """Measurement of a bundle on a split, with what describes both."""

    measurement: Measurement
    structures: Sequence[str]
    """Names of the rows 1 .. C-1 of the records."""
    surfaces: Mapping[str, Sequence[SurfaceScores]] | None
    """Scores of each structure, by case; None where the files do not state the true voxel size."""
    nsd_tolerance_mm: float | None
    """Tolerance of the normalised surface Dice; None where `surfaces` is."""
    model: str
    """Name of the bundle."""
    version: str
    identity: str
    """name@sha256 of the bundle."""
    population: Population
    """Population of the cases."""
    split: str
    """Name of the split."""
    trained_on: bool
    """Whether the recipe trains on the split."""
    conventions: str
    """Definitions of the figures, as the card states them."""
    date: dt.date
    """Date of the measurement."""

    @property
    def source(self) -> str:
        """Return model, data set and split, for the titles of pictures."""
        return f"{self.model} on {self.population.dataset}, {self.split}"


def evaluate(
    bundle: LoadedBundle, recipe: Recipe, split: str, cases: Sequence[Case], done: Callable[[Case], None]
) -> Evaluation:
    """Return the evaluation of a bundle on a split of the recipe's data set.

    Args:
        bundle: ready to serve.
        recipe: describes the data set.
        split: name of the split.
        cases: of the split.
        done: called after each case.

    Raises:
        DataError: a label file does not fit.
        ScanError: a file cannot be read.
    """
    config, tolerance_mm = bundle.description.config, recipe.nsd_tolerance_mm
    surfaces: dict[str, list[SurfaceScores]] = {}

    def look(prediction: CasePrediction) -> None:
        if tolerance_mm is not None:
            surfaces[prediction.case.name] = structure_surfaces(
                prediction.reference_DHW, prediction.mask_DHW, config.structures, prediction.spacing_mm, tolerance_mm
            )

    return Evaluation(
        measurement=measure(bundle.network, config, cases, done, look, bundle.engine_kind),
        structures=[structure.name for structure in config.structures],
        surfaces=None if tolerance_mm is None else surfaces,
        nsd_tolerance_mm=tolerance_mm,
        model=config.name,
        version=config.version,
        identity=bundle.description.identity,
        population=recipe.population(list(cases)),
        split=split,
        trained_on=split in recipe.train_splits,
        conventions=bundle.description.card.conventions,
        date=dt.datetime.now(dt.UTC).date(),
    )


def measure(
    network: nn.Module,
    config: ServiceConfig,
    cases: Sequence[Case],
    done: Callable[[Case], None],
    look: Callable[[CasePrediction], None] | None = None,
    engine_kind: EngineKind = REFERENCE,
) -> Measurement:
    """Measure the network on the cases, on their native grids.

    Args:
        network: in evaluation mode, on the device that computes.
        config: how the bundle is served.
        cases: labelled cases that the network was not trained on.
        done: called after each case.
        look: called with each prediction, for scores that a card does not hold; only one is in memory at a time.
        engine_kind: engine and precision that run the network.

    Raises:
        DataError: a label file does not fit.
        ScanError: a file cannot be read.
    """
    records = []
    for case in cases:
        (prediction,) = predictions(network, config, case, [config.temperature])
        records.append(prediction.record(config.structures))
        if look is not None:
            look(prediction)
        done(case)
    structures = [structure.name for structure in config.structures]
    device = device_of(network)
    return Measurement.of(*engine_kind, this_platform(device), records, structures, device_kind(device))


def measure_one(
    network: nn.Module, config: ServiceConfig, case: Case, temperatures: Sequence[Sequence[float]]
) -> list[CaseRecord]:
    """Return the record of one case for each choice of temperatures, one temperature per class."""
    return [prediction.record(config.structures) for prediction in predictions(network, config, case, temperatures)]


def predictions(
    network: nn.Module, config: ServiceConfig, case: Case, temperatures: Sequence[Sequence[float]]
) -> list[CasePrediction]:
    """Return the prediction of one case for each choice of temperatures, one temperature per class.

    Raises:
        DataError: a file cannot be read, or does not fit.
    """
    return predictions_of(network, config, case, read_case(case, config), temperatures)


def predictions_of(
    network: nn.Module,
    config: ServiceConfig,
    case: Case,
    content: tuple[Volume, npt.NDArray[np.uint8]],
    temperatures: Sequence[Sequence[float]],
) -> list[CasePrediction]:
    """Return `predictions` of a scan and its class indices, (D, H, W), that may differ from those in the case's files."""
    scan, classes = content
    image, grid = preprocess(scan, config)
    x, y, z = (round(float(mm), 4) for mm in scan.spacing_mm)
    with _one_thread():
        logits = infer(network, image, config)
        choices = [config.model_copy(update={"temperature": temperature}) for temperature in temperatures]
        probs_by_choice = [probabilities(logits, grid, choice) for choice in choices]
    return [
        CasePrediction(case, probs, probs.argmax(axis=0).astype(np.uint8), classes, (x, y, z))
        for probs in probs_by_choice
    ]


def differences(measured: Measurement, stated: Measurement) -> dict[str, float]:
    """Return the absolute difference of every figure that is not exactly equal in two measurements.

    The sums of each case are compared as well, since figures may be equal by chance. A case that differs is listed by its
    name, with the largest difference of its ACE over the classes; infinity if only one measurement has it.
    """
    figures, their_figures = _figures(measured), _figures(stated)
    cases, their_cases = ({case.case: case for case in m.cases} for m in (measured, stated))
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
    # The split of a convolution over threads affects rounding; with one thread it is the same on every machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def this_platform(device: torch.device = CPU) -> str:
    """Return processor, instruction set and torch version of this machine, and the GPU if that computes.

    Family and model number distinguish processor generations with the same name, for which engines choose other kernels.

    Args:
        device: that computes.
    """
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        cpu = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        model = f"{cpu['model name']} (family {cpu['cpu family']}, model {cpu['model']})"
    except (OSError, KeyError):  # not Linux, or not x86
        model = platform.processor()
    parts = [model, torch.backends.cpu.get_cpu_capability(), *_gpu(device), f"torch {torch.__version__}"]
    return ", ".join(parts)


def _gpu(device: torch.device) -> list[str]:
    """Return name and compute capability of a GPU, its libraries, and how it computes float32; nothing for a CPU."""
    if device.type != "cuda":
        return []
    float32 = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch's types lack it
    return [
        f"{torch.cuda.get_device_name(device)} ({device_kind(device)})",
        f"CUDA {torch.version.cuda}",
        f"cuDNN {torch.backends.cudnn.version()}",
        f"float32 as {float32}",
    ]
