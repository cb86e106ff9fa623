"""Artefacts of a scan, each a function of a severity: for augmentation, for measuring what mild ones cost, and for proof.

Each takes (D, H, W) intensities, a severity above 0 and a generator, and returns new intensities of the same shape, float32.
Bias field, ghosting and low resolution are the models of TorchIO (Pérez-García et al., Computer Methods and Programs in
Biomedicine 208:106236, 2021).
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from scipy.ndimage import gaussian_filter, zoom

Image = npt.NDArray[np.float32]
Artefact = Callable[[Image, float, np.random.Generator], Image]

_DEGREE: Final = 3
"""Of the polynomial of a bias field."""

_GHOSTS: Final = (2, 6)
"""Fewest and most ghosts of an image."""

_LEVEL: Final = 4.0
"""Mean intensity of tissue in units of its deviation, in whose place a normalised image has 0.

T1-weighted crops of the hippocampus have 3 to 6; gain, bias and gamma act on intensities, not on z-scores.
"""


def noise(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Add Gaussian noise whose deviation is `severity` times that of the image."""
    added = generator.standard_normal(image.shape, np.float32)
    return image + np.float32(severity * image.std()) * added


def blur(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Smooth by a Gaussian of `severity` voxels."""
    del generator
    return np.asarray(gaussian_filter(image, severity, mode="nearest"), np.float32)


def bias_field(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Multiply by exp of a random polynomial of degree 3 whose coefficients reach `severity`."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape), indexing="ij", sparse=True)
    field = np.zeros(image.shape, np.float32)
    for i in range(_DEGREE + 1):
        for j in range(_DEGREE + 1 - i):
            for k in range(_DEGREE + 1 - i - j):
                if i + j + k:
                    field += (
                        np.float32(generator.uniform(-severity, severity)) * axes[0] ** i * axes[1] ** j * axes[2] ** k
                    )
    return image * np.exp(field)


def gamma(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Raise intensities, scaled to [0, 1], to the power of exp(+-severity)."""
    low, high = float(image.min()), float(image.max())
    power = np.exp(severity * generator.choice([-1, 1]))
    return np.asarray(low + (high - low) * ((image - low) / max(high - low, 1e-6)) ** power, np.float32)


def ghosting(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Weaken every n-th line of k-space along a random axis by the share `severity`, but for its centre."""
    axis = int(generator.integers(image.ndim))
    spectrum = np.moveaxis(np.fft.fftshift(np.fft.fftn(image)), axis, 0)
    ghosts = int(generator.integers(*_GHOSTS, endpoint=True))
    middle = len(spectrum) // 2
    lines = np.arange(len(spectrum))
    weakened = (lines % ghosts == 0) & (np.abs(lines - middle) > 1)
    spectrum[weakened] *= 1 - min(severity, 1.0)
    restored = np.fft.ifftn(np.fft.ifftshift(np.moveaxis(spectrum, 0, axis)))
    return np.asarray(np.abs(restored), np.float32)


def low_resolution(image: Image, severity: float, generator: np.random.Generator) -> Image:
    """Interpolate along a random axis from planes `severity` times as thick, each the mean of those it covers."""
    axis = int(generator.integers(image.ndim))
    return thick_planes(image, severity, axis)


def thick_planes(image: Image, thickness: float, axis: int) -> Image:
    """Average along an axis over a thickness in voxels, sample there, and interpolate back."""
    n = image.shape[axis]
    fewer = max(2, round(n / thickness))
    averaged = gaussian_filter(
        image, [thickness / 2.355 if k == axis else 0 for k in range(image.ndim)], mode="nearest"
    )
    down = [fewer / n if k == axis else 1 for k in range(image.ndim)]
    up = [n / fewer if k == axis else 1 for k in range(image.ndim)]
    return np.asarray(zoom(zoom(averaged, down, order=1), up, order=1), np.float32)


ARTEFACTS: Final[Mapping[str, Artefact]] = {
    "noise": noise,
    "blur": blur,
    "bias field": bias_field,
    "gamma": gamma,
    "ghosting": ghosting,
    "low resolution": low_resolution,
}

_IN_TRAINING: Final[Mapping[str, tuple[float, float, float]]] = {
    "low resolution": (0.2, 1.2, 3.0),
    "blur": (0.2, 0.3, 1.1),
    "ghosting": (0.1, 0.1, 0.6),
    "bias field": (0.3, 0.05, 0.4),
    "gamma": (0.3, 0.05, 0.4),
    "noise": (0.35, 0.05, 0.6),
}
"""Probability, and least and largest severity."""


class RandArtefactsd(Randomizable, MapTransform):
    """Spoil a normalised image by some artefacts at random, and normalise it again.

    Voxels of exactly 0 show nothing (padding) and stay 0.
    """

    def __init__(self, keys: KeysCollection) -> None:
        """Take the keys of images, (C, D, H, W)."""
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return the data with spoilt images."""
        spoilt = dict(data)
        for key in self.key_iterator(spoilt):
            image = spoilt[key]
            channels = [self._spoilt(channel) for channel in np.asarray(image, np.float32)]
            spoilt[key] = torch.from_numpy(np.stack(channels))
        return spoilt

    def _spoilt(self, normalised: Image) -> Image:
        generator = np.random.default_rng(self.R.randint(1 << 31))
        tissue = normalised != 0
        image = before = normalised + np.float32(_LEVEL)  # padding is as tissue of mean intensity meanwhile
        for name, (probability, low, high) in _IN_TRAINING.items():
            if generator.random() < probability:
                image = ARTEFACTS[name](image, float(generator.uniform(low, high)), generator)
        if image is before or not tissue.any():
            return normalised
        shown = image[tissue]
        return np.where(tissue, (image - shown.mean()) / max(float(shown.std()), 1e-3), 0).astype(np.float32)


class RandCutPlanesd(Randomizable, MapTransform):
    """Let some outer planes show nothing, as beyond the field of view: 0 in the image, background in the label."""

    def __init__(self, keys: KeysCollection, probability: float, most: int) -> None:
        """Take the keys, the probability at each of the six faces, and the most planes that are cut there."""
        super().__init__(keys)
        self._probability = probability
        self._most = most

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return the data with the same planes cut for all keys."""
        cut = dict(data)
        shape = next(iter(cut[key] for key in self.key_iterator(cut))).shape[1:]
        begin, end = [0, 0, 0], list(shape)
        for axis in range(3):
            if self.R.random_sample() < self._probability:
                begin[axis] = self.R.randint(1, self._most + 1)
            if self.R.random_sample() < self._probability:
                end[axis] -= self.R.randint(1, self._most + 1)
        inside = (slice(None), *(slice(a, b) for a, b in zip(begin, end, strict=True)))
        for key in self.key_iterator(cut):
            rest = torch.zeros_like(cut[key])
            rest[inside] = cut[key][inside]
            cut[key] = rest
        return cut
