"""The floor of ACE: what a perfectly calibrated model would still score on an image of this size.

A bin of n voxels whose labels truly follow p still shows a gap of about sqrt(p (1 - p) / n). The floor is found by
simulation: draw labels from p itself, score them, average. ACE minus its floor is the excess that the model owns.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .histogram import BINS, ReliabilityHistogram
from .scores import ace

_REACH: Final = 6.0
"""Standard deviations of the kernel between opposite faces of the noise's grid: they correlate by exp(-9) at most."""

_TAIL: Final = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
"""b1 .. b5 of Abramowitz and Stegun 26.2.17."""


def ace_floor(
    probs: npt.NDArray[np.float32],
    structures: Sequence[Sequence[int]] | None = None,
    *,
    replicates: int,
    seed: int,
    correlation_voxels: float = 0.0,
    bins: int = BINS,
) -> npt.NDArray[np.float64]:
    """Return the mean ACE of each class, or structure, over labels drawn from `probs`, (C,) in [0, 1].

    By default voxels are drawn independently of one another. Real errors are correlated in space, which makes the true
    floor higher: that one is a lower bound. With `correlation_voxels` neighbours agree, while each voxel's label still
    follows its p (a Gaussian copula): white noise is smoothed, and its normal probability is the number in [0, 1]
    that chooses the class.

    Args:
        probs: (C, ...) float32 probabilities that sum to 1 over C.
        structures: as `ReliabilityHistogram.from_probabilities`.
        replicates: number of simulated label maps.
        seed: seed of the generator; the same seed gives the same floor.
        correlation_voxels: standard deviation of the Gaussian kernel that smooths the noise, along every axis. Noise
            at a distance of d voxels correlates by ``exp(-d^2 / (4 correlation_voxels^2))``.
        bins: M.

    Raises:
        ValueError: `correlation_voxels` is negative or not finite.
    """
    if not 0 <= correlation_voxels < math.inf:
        msg = f"correlation_voxels is {correlation_voxels}; expected 0 for independent voxels, or more."
        raise ValueError(msg)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        labels = _labels(probs, _uniform(generator, probs.shape[1:], correlation_voxels))
        draws.append(ace(ReliabilityHistogram.from_probabilities(probs, labels, structures, bins), include_absent=True))
    return np.mean(draws, axis=0)


def _labels(probs: npt.NDArray[np.float32], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Return the class whose share of [0, 1] holds the voxel's number: class c from the sum of p below c on."""
    labels = np.zeros(uniform.shape, np.uint16)
    edge = np.zeros(uniform.shape)
    for p in probs[:-1]:
        edge += p
        labels += uniform >= edge
    return labels


def _uniform(
    generator: np.random.Generator, shape: tuple[int, ...], correlation_voxels: float
) -> npt.NDArray[np.float64]:
    """Return a number for each voxel, uniform in [0, 1]; neighbours are alike where they are to be correlated."""
    if not correlation_voxels:
        return generator.random(shape)
    # The Fourier transform joins opposite faces; with a margin beside the image they hardly feel each other.
    margin = math.ceil(_REACH * correlation_voxels)
    field = generator.standard_normal([n + margin for n in shape])
    for axis, n in enumerate(field.shape):
        gain = np.exp(-2 * (np.pi * correlation_voxels * np.fft.fftfreq(n)) ** 2)
        gain /= np.sqrt(np.mean(gain**2))  # keeps the variance of each voxel 1
        spectrum = np.fft.rfft(np.moveaxis(field, axis, -1))
        field = np.moveaxis(np.fft.irfft(spectrum * gain[: n // 2 + 1], n), -1, axis)
    return normal_cdf(field[tuple(slice(n) for n in shape)])


def normal_cdf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard normal distribution function, any shape, within 7.5e-8: about float32's last digit below 1.

    ``1 - Z(x) (b1 t + ... + b5 t^5)`` with ``t = 1 / (1 + 0.2316419 x)`` and the normal density Z for x >= 0, by
    symmetry else: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.2.17, after Hastings.
    """
    t = 1 / (1 + 0.2316419 * np.abs(x))
    tail = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) * t * np.polynomial.polynomial.polyval(t, _TAIL)
    return np.where(x < 0, tail, 1 - tail)
