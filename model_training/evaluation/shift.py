"""Observes answers about known persons, clean and mildly spoilt, as the reference of the shift test."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
import torch
from torch import nn

from model_training.config import Recipe
from model_training.data.artefacts import ARTEFACTS
from model_training.data.case import Case, read_case
from model_training.evaluation.crossvalidate import networks_of
from service.bundle.card import ComparedFeature, ObservedAnswer, ShiftTestRecord
from service.bundle.schema import ServiceConfig
from service.pipeline.features import describe, features_of
from service.pipeline.infer import infer
from service.pipeline.predict import segment
from service.pipeline.preprocess import preprocess
from service.volume import Volume

MILD: Final = {
    "noise": (0.1, 0.5),
    "blur": (0.4, 0.8),
    "bias field": (0.05, 0.3),
    "gamma": (0.05, 0.2),
    "ghosting": (0.1, 0.3),
    "low resolution": (1.2, 2.0),
}
"""Least and largest severity of the artefacts that the statement covers."""

MILD_EACH: Final = 3
"""Mildly spoilt answers of each case, each with another artefact."""


def observe_folds(
    recipe: Recipe, data: Path, runs: Path, folds: Sequence[str], done: Callable[[Case], None]
) -> ShiftTestRecord:
    """Return the answers about the persons of each fold by the network that was trained without it.

    Args:
        recipe: of the runs.
        data: folder of the data set.
        runs: folder that `train_folds` filled.
        folds: to observe.
        done: called after each case.

    Raises:
        DataError: a fold has not been trained, or the data set is not as the recipe expects.
    """
    config = recipe.service
    answers: list[ObservedAnswer] = []
    for fold, (network, cases) in zip(folds, networks_of(recipe, data, runs, folds), strict=True):
        for case in cases:
            answers += _observed(network, config, case, fold)
            done(case)
    features = [
        ComparedFeature(name=name, unit=feature.unit, log=feature.log) for name, feature in features_of(config).items()
    ]
    return ShiftTestRecord(features=features, answers=answers)


def answer_about(
    network: nn.Module, volume: Volume, config: ServiceConfig
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], dict[str, float]]:
    """Return the mask of a volume on its own grid, and the features of the answer."""
    image, grid = preprocess(volume, config)
    with torch.inference_mode():
        logits = infer(network, image, config)
        return segment(logits, grid, config).mask, describe(image, logits, config)


def mean_dsc(mask: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], reference: object, values: Sequence[int]) -> float:
    """Return the mean DSC over the label values that the reference holds; NaN if it holds none."""
    scores = [
        2
        * np.count_nonzero((mask == value) & (reference == value))
        / (np.count_nonzero(mask == value) + np.count_nonzero(reference == value))
        for value in values
        if np.any(reference == value)
    ]
    return float(np.mean(scores)) if scores else float("nan")


def _observed(network: nn.Module, config: ServiceConfig, case: Case, fold: str) -> Iterator[ObservedAnswer]:
    scan, classes = read_case(case, config)
    values = np.array([label.value for label in config.labels], np.uint8)
    for artefacts, volume in _clean_and_spoilt(scan, case.name):
        mask, features = answer_about(network, volume, config)
        yield ObservedAnswer(
            case=case.name,
            person=case.person,
            fold=fold,
            artefacts=artefacts,
            dsc=round(mean_dsc(mask, values[classes], values[1:].tolist()), 4),
            values=[float(f"{value:.4g}") for value in features.values()],
        )


def _clean_and_spoilt(scan: Volume, name: str) -> Iterator[tuple[str, Volume]]:
    """Yield the scan itself and then spoilt ones; which ones follows from the case's name."""
    yield "", scan
    generator = np.random.default_rng(crc32(name.encode()))
    for artefact in generator.choice(list(MILD), MILD_EACH, replace=False):
        severity = float(generator.uniform(*MILD[artefact]))
        spoilt = [ARTEFACTS[artefact](channel.astype(np.float32), severity, generator) for channel in scan.array_CDHW]
        yield f"{artefact} {severity:.2f}", replace(scan, array_CDHW=np.stack(spoilt))
