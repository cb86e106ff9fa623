"""The floor of ACE: what a perfectly calibrated model would still score on an image of this size.

A bin of n voxels whose labels truly follow p still shows a gap of about sqrt(p (1 - p) / n). The floor is found by
simulation: draw labels from p itself, score them, average. ACE minus its floor is the excess that the model owns.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace


def ace_floor(
    probs: npt.NDArray[np.float32], structures: Sequence[Sequence[int]] | None = None, *, replicates: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return the mean ACE of each class, or structure, over labels drawn from `probs`, (C,) in [0, 1].

    Voxels are drawn independently of one another. Real errors are correlated in space, which makes the true floor
    higher: this one is a lower bound.

    Args:
        probs: (C, ...) float32 probabilities that sum to 1 over C.
        structures: as `ReliabilityHistogram.from_probabilities`.
        replicates: number of simulated label maps.
        seed: seed of the generator; the same seed gives the same floor.
    """
    generator = np.random.default_rng(seed)
    flat = probs.reshape(len(probs), -1)
    edges = np.cumsum(flat, axis=0, dtype=np.float64)[:-1]
    draws = []
    for _ in range(replicates):
        labels = (generator.random(flat.shape[1]) >= edges).sum(axis=0)
        draws.append(ace(ReliabilityHistogram.from_probabilities(flat, labels, structures), include_absent=True))
    return np.mean(draws, axis=0)
