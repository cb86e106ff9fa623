"""Measures what a locator's error costs: `python benchmarks/located_crops.py`.

The card's cases are crops that an expert placed. Here each is put into a larger scan by repeating its outermost voxels. The box
starts where a locator with this error would put it, moves to rest as in the service, and is scored against the expert's labels
on the voxels of the crop. So the figures are those of the card, with the error of locating included. Three draws per case.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model_training.data.case import Case, read_case
from model_training.evaluation.evaluate import CasePrediction
from model_training.locator.synthesis import random_rotation
from model_training.recipes.hippocampus import HIPPOCAMPUS
from service.bundle.card import Measurement
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.registry import SHIPPED
from service.errors import AnatomyNotFound
from service.pipeline.centre import place
from service.pipeline.infer import infer
from service.pipeline.locate import Box, Boxes
from service.pipeline.predict import probabilities
from service.pipeline.preprocess import preprocess
from service.volume import Volume

DRAWS = 3
MARGIN = 30
"""Voxels by which a crop is widened on every side."""

CHI_95 = 2.795
"""95th percentile of the length of a standard normal vector in three dimensions."""


def located(
    bundle: LoadedBundle, case: Case, error_mm: float, degrees: float, rng: np.random.Generator
) -> tuple[CasePrediction, npt.NDArray[np.float64]] | None:
    """Return the prediction of a case in a located box, and the offset of the box from the middle of the labels.

    Args:
        bundle: has a locator.
        case: a crop.
        error_mm: distance within which 95 of 100 boxes start.
        degrees: largest rotation of the box about each axis.
        rng: draws the error.
    """
    config = bundle.description.config
    locator = config.locator or sys.exit("The bundle has no locator.")
    volume, reference = read_case(case, config)
    edges = [(0, 0), *[(MARGIN, MARGIN)] * 3]
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, MARGIN)
    wide = Volume(np.pad(volume.array_CDHW, edges, mode="edge"), affine, b"")
    inside = np.argwhere(reference > 0)
    middle_mm = volume.affine[:3, :3] @ ((inside.min(axis=0) + inside.max(axis=0)) / 2) + volume.affine[:3, 3]
    box = Box(locator.parts[0], middle_mm + rng.normal(0, error_mm / CHI_95, 3), random_rotation(rng, degrees))
    try:
        placement = place(bundle.network, wide, Boxes([box], {}), config)
    except AnatomyNotFound:
        return None
    logits = infer(bundle.network, preprocess(placement.placed[0].volume, config)[0], config)[None]
    probs = probabilities(logits, placement.grid(wide, config), config.located)[: len(config.labels)]
    probs = probs[(slice(None), *[slice(MARGIN, -MARGIN)] * 3)]
    spacing = tuple(round(float(mm), 4) for mm in volume.spacing_mm)
    prediction = CasePrediction(case, probs, probs.argmax(axis=0).astype(np.uint8), reference, spacing)  # type: ignore[arg-type]  # has three entries
    return prediction, placement.placed[0].centre_mm - middle_mm


def main() -> None:
    """Print the distances and the figures."""
    arguments = _arguments()
    bundle = load_bundle(arguments.bundle, torch.device("cpu"))
    card = bundle.description.card
    if card.locating is None or card.locating.distance_mm_p95 is None:
        sys.exit("The card does not say how far off the locator is.")
    error_mm = card.locating.distance_mm_p95
    cases = HIPPOCAMPUS.cases(arguments.data / "Task04_Hippocampus")[HIPPOCAMPUS.validation_split]
    attempts = [
        located(bundle, case, error_mm, arguments.degrees, np.random.default_rng([arguments.seed, k, draw]))
        for draw in range(DRAWS)
        for k, case in enumerate(cases)
    ]
    kept = [attempt for attempt in attempts if attempt is not None]
    distance = np.linalg.norm([offset for _, offset in kept], axis=1)
    print(
        f"{len(cases)} cases x {DRAWS}; boxes begin within {error_mm:.1f} mm (95 of 100) and {arguments.degrees:g} degrees"
    )
    print(
        f"at rest {len(kept)} of {len(attempts)}; from the middle of the expert's labels: median {np.median(distance):.1f} mm, ",
        end="",
    )
    print(f"95 % within {np.percentile(distance, 95):.1f} mm")
    structures = bundle.description.config.structures
    records = [prediction.record(structures) for prediction, _ in kept]
    measured = Measurement.of("torch", "fp32", "", records, [structure.name for structure in structures])
    expert = card.measurements[0].scores
    print(f"\n{'figure':12} {'as an expert placed them':>32} {'located':>32}")
    for name in ("dsc", "ace_macro", "ace_floor", "ace_excess", "ece_macro", "brier", "nll"):
        cells = [f"{s.value:.4f} ({s.low:.4f} to {s.high:.4f})" for s in (expert[name], measured.scores[name])]
        print(f"{name:12} {cells[0]:>32} {cells[1]:>32}")


def _arguments() -> argparse.Namespace:
    default = Path(__file__).parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", default)))
    parser.add_argument("--bundle", type=Path, default=SHIPPED / "hippocampus-mr")
    parser.add_argument("--degrees", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
