"""Spoilt and foreign inputs at three severities, for `trust.py`: what may reach a model that was not made for it."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from model_training.data.artefacts import ARTEFACTS

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


class Spoilt(NamedTuple):
    """An image and what is true of it.

    Args:
        image: (D, H, W) float32.
        labels: (D, H, W) the true labels on its grid; None if the anatomy is not in it.
    """

    image: Image
    labels: Labels | None


Spoiling = Callable[[Image, Labels, int, np.random.Generator], Spoilt]
"""Image, labels, severity 0, 1 or 2, and a generator."""

SEVERITIES: Final = ("mild", "middle", "severe")


def _artefact(name: str, severities: tuple[float, float, float]) -> Spoiling:
    def spoil(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
        return Spoilt(ARTEFACTS[name](image, severities[severity], generator), labels)

    return spoil


def _gain(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    gain, offset = generator.uniform(0.5, 20), generator.uniform(0, 1000)
    return Spoilt(np.float32(gain * 10.0**severity) * image + np.float32(offset), labels)


def _inverted(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    del generator
    share = (0.6, 0.8, 1.0)[severity]
    return Spoilt((1 - share) * image + share * (image.max() - image), labels)


def _half(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    cut = image.copy()
    axis = int(generator.integers(3))
    planes = round(image.shape[axis] * (0.2, 0.35, 0.5)[severity])
    moved = np.moveaxis(cut, axis, 0)
    moved[:planes] = 0
    return Spoilt(cut, labels)


def _planes(value: float) -> Spoiling:
    def spoil(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
        spoilt = image.copy()
        moved = np.moveaxis(spoilt, int(generator.integers(3)), 0)
        moved[: (1, 2, 3)[severity]] = value
        return Spoilt(spoilt, labels)

    return spoil


def _padded(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    value = float(generator.choice([0, -1024, -3024]))
    n = (2, 4, 8)[severity]
    return Spoilt(np.pad(image, n, constant_values=value), np.pad(labels, n))


def _spike(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    spoilt = image.copy()
    spoilt[tuple(int(generator.integers(n)) for n in image.shape)] = image.max() * (10, 100, 1000)[severity]
    return Spoilt(spoilt, labels)


def _replaced(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    """Replace the structure by the mean of the image: more and more of its texture goes; its outline stays visible."""
    del generator
    soft = gaussian_filter((labels > 0).astype(np.float32), 0.7) * np.float32((0.5, 0.8, 1.0)[severity])
    return Spoilt(image * (1 - soft) + np.float32(image.mean()) * soft, labels)


def _shuffled(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    spoilt = image.ravel().copy()
    chosen = generator.permutation(spoilt.size)[: round(spoilt.size * (0.3, 0.6, 1.0)[severity])]
    spoilt[chosen] = spoilt[generator.permutation(chosen)]
    return Spoilt(spoilt.reshape(image.shape), None if severity == 2 else labels)


def _only_noise(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    del labels
    field = gaussian_filter(generator.standard_normal(image.shape), (0.01, 1.5, 4.0)[severity])
    return Spoilt((1000 + 100 * field / field.std()).astype(np.float32), None)


def _ramp(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    del labels
    steps = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"))
    slope = generator.normal(size=3)
    field = np.tensordot(slope, steps, 1) + (0, 2, 10)[severity] * generator.standard_normal(image.shape)
    return Spoilt((1000 + 10 * field).astype(np.float32), None)


def _sphere(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    del labels
    grid = np.indices(image.shape) - np.array(image.shape).reshape(3, 1, 1, 1) / 2
    inside = np.linalg.norm(grid, axis=0) < (6, 10, 15)[severity]
    field = np.where(inside, 600, 1000) + 40 * generator.standard_normal(image.shape)
    return Spoilt(gaussian_filter(field, 0.7).astype(np.float32), None)


def _turned(image: Image, labels: Labels, severity: int, generator: np.random.Generator) -> Spoilt:
    """Turn the voxels up-down, front-back, or both, under an unchanged header."""
    del generator
    axes = ((2,), (1,), (1, 2))[severity]
    return Spoilt(np.flip(image, axes).copy(), np.flip(labels, axes).copy())


SPOILINGS: Final[dict[str, Spoiling]] = {
    "gain and offset": _gain,
    "noise": _artefact("noise", (0.2, 1.5, 4.0)),
    "blur": _artefact("blur", (0.7, 1.5, 3.0)),
    "bias field": _artefact("bias field", (0.3, 0.8, 1.5)),
    "gamma": _artefact("gamma", (0.2, 0.5, 1.0)),
    "ghosting": _artefact("ghosting", (0.2, 0.5, 1.0)),
    "low resolution": _artefact("low resolution", (1.5, 3.0, 6.0)),
    "planes of -3024": _planes(-3024),
    "planes of 0": _planes(0),
    "padding": _padded,
    "spike": _spike,
    "part is 0": _half,
    "contrast inverted": _inverted,
    "hippocampus replaced": _replaced,
    "voxels shuffled": _shuffled,
    "only noise": _only_noise,
    "only a ramp": _ramp,
    "only a sphere": _sphere,
    "turned over": _turned,
}
