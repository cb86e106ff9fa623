"""A network and labelled cases -> what it scores on them, through the very path that serves.

The measurement is what a card holds; an evaluation adds what a reader of results wants to know besides.
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
from service.pipeline.infer import infer
from service.pipeline.predict import probabilities
from service.pipeline.preprocess import preprocess

TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""By how much a figure may differ between processors, which round differently: docs/engines.md."""


@dataclass(frozen=True, slots=True, eq=False)
class CasePrediction:
    """What a network says about a labelled case, beside its reference, on the native grid.

    Args:
        case: which case.
        probs_CDHW: (C, D, H, W) float32 calibrated probabilities.
        mask_DHW: (D, H, W) uint8, the predicted class of each voxel: the argmax.
        reference_DHW: (D, H, W) uint8, the true class of each voxel.
        spacing_mm: distance between voxel centres along the three axes, rounded to 0.1 um.
    """

    case: Case
    probs_CDHW: npt.NDArray[np.float32]
    mask_DHW: npt.NDArray[np.uint8]
    reference_DHW: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]

    def record(self, structures: Sequence[StructureChannels]) -> CaseRecord:
        """Return the sums that a card holds of this case."""
        rows = [(0,), *(structure.channels for structure in structures)]
        d, h, w = self.mask_DHW.shape
        sums = measure_case(self.case.name, self.case.person, self.probs_CDHW, self.mask_DHW, self.reference_DHW, rows)
        return CaseRecord.of(sums, (d, h, w), self.spacing_mm)


@dataclass(kw_only=True, slots=True, frozen=True)
class Evaluation:
    """What was measured, of which bundle, on whom."""

    measurement: Measurement
    structures: Sequence[str]
    """Names of the rows 1 .. C-1 of the records."""
    surfaces: Mapping[str, Sequence[SurfaceScores]] | None
    """By case, of each structure; None where the files do not tell the true voxel size, so that nothing has mm or ml."""
    nsd_tolerance_mm: float | None
    """Tolerance of the NSD; None likewise."""
    model: str
    """Name of the bundle."""
    version: str
    identity: str
    """name@sha256 of the bundle."""
    population: Population
    """Whom the figures speak about."""
    split: str
    """Which part of the data set, by its name."""
    trained_on: bool
    """Whether the recipe trains on that part."""
    conventions: str
    """How the card's figures are defined."""
    date: dt.date
    """When it was measured."""

    @property
    def source(self) -> str:
        """Return what the cases are, as it stands on every picture."""
        return f"{self.model} on {self.population.dataset}, {self.split}"


def evaluate(
    bundle: LoadedBundle, recipe: Recipe, split: str, cases: Sequence[Case], done: Callable[[Case], None]
) -> Evaluation:
    """Return what a bundle scores on a split of the recipe's data set.

    Args:
        bundle: as it is served.
        recipe: knows the data set.
        split: name of the split.
        cases: of the split.
        done: called after each case.

    Raises:
        DataError: a label file does not fit.
        ScanError: a file cannot be read.
    """
    config, tolerance_mm = bundle.description.config, recipe.nsd_tolerance_mm
    surfaces: dict[str, list[SurfaceScores]] = {}

    def look(seen: CasePrediction) -> None:
        if tolerance_mm is not None:
            surfaces[seen.case.name] = structure_surfaces(
                seen.reference_DHW, seen.mask_DHW, config.structures, seen.spacing_mm, tolerance_mm
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
    """Return what the network scores on the cases, on their native grids.

    Args:
        network: in evaluation mode.
        config: how the bundle is served.
        cases: labelled cases that the network was not trained on.
        done: called after each case.
        look: given each prediction, of which only one is held at a time, for scores that a card does not hold.
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
    return Measurement.of(*engine_kind, this_platform(), records, structures)


def measure_one(
    network: nn.Module, config: ServiceConfig, case: Case, temperatures: Sequence[Sequence[float]]
) -> list[CaseRecord]:
    """Return the sums of one case, once for each choice of a temperature per class."""
    return [prediction.record(config.structures) for prediction in predictions(network, config, case, temperatures)]


def predictions(
    network: nn.Module, config: ServiceConfig, case: Case, temperatures: Sequence[Sequence[float]]
) -> list[CasePrediction]:
    """Return what the network says about one case, once for each choice of a temperature per class.

    Raises:
        DataError: a file cannot be read, or does not fit.
    """
    scan, classes = read_case(case, config)
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
    """Return processor, instruction set and torch version of this machine.

    Family and model tell generations apart that share a name; engines choose other kernels for each.
    """
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        model = f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    except (OSError, KeyError):  # not Linux, or not x86
        model = platform.processor()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
