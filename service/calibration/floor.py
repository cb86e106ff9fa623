"""The floor of ACE: the score of a perfectly calibrated model on an image of this size.

Even if labels truly follow p, a bin of n voxels shows a gap of about sqrt(p (1 - p) / n). The floor is simulated: draw
labels from p itself, score them, average. ACE minus its floor is the excess, the model's own miscalibration.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .histogram import BINS, ReliabilityHistogram
from .scores import ace

_REACH: Final = 6.0
"""Margin of the noise's grid in standard deviations of the kernel: opposite faces correlate by exp(-9) at most."""

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
    """Return the mean ACE of each class (or structure) over labels drawn from `probs`, (C,) in [0, 1].

    By default voxels are drawn independently. Real errors are correlated in space, which raises the true floor, so the
    result is a lower bound. With `correlation_voxels` neighbours tend to agree while each voxel's label still follows
    its p (a Gaussian copula): white noise is smoothed, and its normal distribution function gives the number in [0, 1]
    that selects the class.

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
    """Return the class of each voxel by inverse transform sampling: class c starts at the sum of p over classes below c."""
    labels = np.zeros(uniform.shape, np.uint16)
    edge = np.zeros(uniform.shape)
    for p in probs[:-1]:
        edge += p
        labels += uniform >= edge
    return labels


def _uniform(
    generator: np.random.Generator, shape: tuple[int, ...], correlation_voxels: float
) -> npt.NDArray[np.float64]:
    """Return a number for each voxel, uniform in [0, 1]; with `correlation_voxels` neighbours are similar."""
    if not correlation_voxels:
        return generator.random(shape)
    # The Fourier transform is periodic; a margin keeps opposite faces of the image almost uncorrelated.
    margin = math.ceil(_REACH * correlation_voxels)
    field = generator.standard_normal([n + margin for n in shape])
    for axis, n in enumerate(field.shape):
        gain = np.exp(-2 * (np.pi * correlation_voxels * np.fft.fftfreq(n)) ** 2)
        gain /= np.sqrt(np.mean(gain**2))  # keeps the variance of each voxel 1
        spectrum = np.fft.rfft(np.moveaxis(field, axis, -1))
        field = np.moveaxis(np.fft.irfft(spectrum * gain[: n // 2 + 1], n), -1, axis)
    return normal_cdf(field[tuple(slice(n) for n in shape)])


def normal_cdf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard normal distribution function, any shape, with an error below 7.5e-8, about float32's precision.

    For x >= 0 it is ``1 - Z(x) (b1 t + ... + b5 t^5)`` with ``t = 1 / (1 + 0.2316419 x)`` and the normal density Z, for
    x < 0 it follows by symmetry: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.2.17, after
    Hastings.
    """
    t = 1 / (1 + 0.2316419 * np.abs(x))
    tail = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) * t * np.polynomial.polynomial.polyval(t, _TAIL)
    return np.where(x < 0, tail, 1 - tail)
