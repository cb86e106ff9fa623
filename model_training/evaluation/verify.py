"""Measures a bundle with an engine that its card does not cover, on the card's cases: `calibrant verify-engine`."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.evaluation.evaluate import CPU, measure
from service.bundle.card import Measurement, Precision
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.overlay import write_overlay
from service.bundle.reader import load_bundle
from service.engines.machine import available
from service.engines.ready import FOLDER, run_by
from service.errors import BundleUnsupported

TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3}
"""Allowed difference of a cohort figure from the card's float32: docs/engines.md."""


def verify(  # noqa: PLR0913 - what is measured, on what, and where it goes
    root: Path,
    recipe: Recipe,
    data: Path,
    engine_kind: EngineKind,
    state: Path,
    done: Callable[[Case], None],
    *,
    device: torch.device = CPU,
) -> tuple[Measurement, dict[str, float]]:
    """Measure a bundle with an engine and keep the measurement in the state directory, so that the engine may serve it.

    Args:
        root: folder of the bundle.
        recipe: recipe of the bundle.
        data: folder of the data set.
        engine_kind: engine and precision.
        state: state directory of the service.
        done: called after each case.
        device: that computes, in a process that was prepared for it.

    Returns:
        The measurement, and the difference of each cohort figure from the card's float32 on a CPU.

    Raises:
        BundleUnsupported: the device does not have the engine, or a figure differs by more than the tolerance; nothing
            is kept.
        DataError: the data set does not hold the card's cases.
    """
    bundle = load_bundle(root, device)
    if engine_kind not in available(device):
        msg = f"{device} of this machine does not have {engine_kind.name}; it has {', '.join(kind.name for kind in available(device))}."
        raise BundleUnsupported(msg)
    stated = bundle.description.card.measurement(*REFERENCE)
    cases = recipe.cases(data)[recipe.validation_split]
    if stated is None or {case.case for case in stated.cases} != {case.name for case in cases}:
        msg = f"{data} does not hold the cases that the card was measured on. Give the folder of that data set."
        raise DataError(msg)
    cache = state / FOLDER / bundle.description.sha256
    network = run_by(engine_kind, bundle.network, bundle.description.config, cache)
    measured = measure(network, bundle.description.config, cases, done, engine_kind=engine_kind)
    moved = distances(measured, stated)
    largest = max(moved.values(), default=0.0)
    if not largest <= TOLERANCE[engine_kind.precision]:  # NaN, too
        msg = f"A figure differs from the card's by {largest:.2g}; at most {TOLERANCE[engine_kind.precision]:g} is accepted of {engine_kind.name}. Serve with another engine."
        raise BundleUnsupported(msg)
    write_overlay(state, bundle.description, measured)
    return measured, moved


def distances(measured: Measurement, stated: Measurement) -> dict[str, float]:
    """Return the absolute difference of each cohort figure, foreground and per structure, between two measurements."""
    return {
        f"{structure} {name}": abs((score.value or 0.0) - (theirs[structure][name].value or 0.0))
        for theirs in [{"foreground": stated.scores, **stated.class_scores}]
        for structure, scores in {"foreground": measured.scores, **measured.class_scores}.items()
        for name, score in scores.items()
    }
