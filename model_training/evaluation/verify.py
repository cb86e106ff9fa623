"""`calibrant verify-engine`: an engine that the card does not cover, measured on the card's cases, here."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.evaluation.evaluate import measure
from service.bundle.card import Measurement, Precision
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.overlay import write_overlay
from service.bundle.reader import load_bundle
from service.engines.machine import available
from service.engines.ready import FOLDER, run_by
from service.errors import BundleUnsupported

TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3}
"""By how much a figure of the cohort may differ from the card's float32: docs/engines.md."""


def verify(
    root: Path, recipe: Recipe, data: Path, engine_kind: EngineKind, state: Path, done: Callable[[Case], None]
) -> tuple[Measurement, dict[str, float]]:
    """Measure a bundle with an engine and keep that in the state directory: from then on it may be served with it.

    Args:
        root: folder of the bundle.
        recipe: that it was made by.
        data: folder of the data set.
        engine_kind: engine and precision.
        state: directory of the service.
        done: called after each case.

    Returns:
        What was measured, and by how much each figure of the cohort differs from the card's float32.

    Raises:
        BundleUnsupported: this machine does not have the engine, or a figure differs by more than the tolerance;
            nothing was kept.
        DataError: the data set does not hold the card's cases.
    """
    bundle = load_bundle(root, torch.device("cpu"))
    if engine_kind not in available(bundle.device):
        msg = f"This machine does not have {engine_kind.name}; it has {', '.join(each.name for each in available(bundle.device))}."
        raise BundleUnsupported(msg)
    stated = bundle.description.card.measurement(*REFERENCE)
    cases = recipe.cases(data)[recipe.validation_split]
    if stated is None or {case.case for case in stated.cases} != {case.name for case in cases}:
        msg = f"{data} does not hold the cases that the card was measured on. Give the folder of that data set."
        raise DataError(msg)
    cache = state / FOLDER / bundle.description.sha256
    network = run_by(engine_kind, bundle.network, bundle.description.config, cache)
    found = measure(network, bundle.description.config, cases, done, engine_kind=engine_kind)
    moved = distances(found, stated)
    largest = max(moved.values(), default=0.0)
    if not largest <= TOLERANCE[engine_kind.precision]:  # NaN, too
        msg = f"A figure differs from the card's by {largest:.2g}; at most {TOLERANCE[engine_kind.precision]:g} is accepted of {engine_kind.name}. Serve with another engine."
        raise BundleUnsupported(msg)
    write_overlay(state, bundle.description, found)
    return found, moved


def distances(found: Measurement, stated: Measurement) -> dict[str, float]:
    """Return by how much each figure of the cohort, foreground and per structure, differs between two measurements."""
    return {
        f"{structure} {name}": abs((score.value or 0.0) - (theirs[structure][name].value or 0.0))
        for theirs in [{"foreground": stated.scores, **stated.class_scores}]
        for structure, scores in {"foreground": found.scores, **found.class_scores}.items()
        for name, score in scores.items()
    }
