"""Two label maps of heads, made of balls."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from model_training.config import Schedule
from model_training.locator import synthesis
from model_training.locator.heads import LANDMARKS, Head, read_heads
from model_training.locator.recipe import LocatorRecipe
from service.bundle.schema import Label, Network, Part

_SIDES = {name: values[0] for name, values in LANDMARKS.items()}


def place_of(name: str) -> tuple[float, float, float]:
    """Return where the ball of a landmark lies, RAS millimetres: mirror images for the two sides."""
    index = list(LANDMARKS).index(name)
    x = {"left": -30, "right": 30}.get(name.split(maxsplit=1)[0], 0)
    row = (index + index // 15) // 2
    return x, 15.0 * row - 60, 16.0 * (row % 3) - 16


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three heads of 2 mm voxels, stored along other axes than RAS."""
    folder = tmp_path_factory.mktemp("maps")
    affine = np.array([[-2.0, 0, 0, 70], [0, 0, 2, -90], [0, -2, 0, 60], [0, 0, 0, 1]])
    index = np.indices((71, 61, 91)).reshape(3, -1)
    mm = (affine[:3, :3] @ index + affine[:3, 3:]).T
    for k in range(3):
        labels = np.where((np.abs(mm) < [62, 80, 50]).all(axis=1), 507, 0)
        labels[(np.abs(mm) < [55, 74, 42]).all(axis=1)] = 3
        for name, value in _SIDES.items():
            labels[np.linalg.norm(mm - place_of(name), axis=1) < 8 + k] = value
        nib.save(nib.Nifti1Image(labels.reshape(71, 61, 91).astype(np.int16), affine), folder / f"head_{k}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def heads(maps: Path) -> list[Head]:
    """Return the three heads."""
    return read_heads(maps)


@pytest.fixture(autouse=True)
def _coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw scans with an eighth of the voxels."""
    monkeypatch.setattr(synthesis, "FINE_MM", 4.0)


@pytest.fixture
def locator_recipe() -> LocatorRecipe:
    """Return a recipe of two steps for a tiny network."""
    parts = [
        Part(
            name=side,
            landmark=f"{side} hippocampus",
            search_mm=(24, 24, 24),
            size_mm=(20, 20, 20),
            labels=[Label(value=10 * n + v, name=f"{side} {v}", color=(n, v, 0)) for v in (1, 2)],
        )
        for n, side in enumerate(("left", "right"), start=1)
    ]
    return LocatorRecipe(
        anatomy="hippocampus",
        extent_mm=(50, 50, 50),
        network=Network(
            name="UNet",
            arguments={"spatial_dims": 3, "in_channels": 1, "out_channels": 17, "channels": [2, 4], "strides": [2]},
        ),
        spacing_mm=8,
        least_landmarks=4,
        residual_mm=8,
        scale=(0.7, 1.4),
        parts=tuple(parts),
        held_out=1,
        schedule=Schedule(steps=3, warmup_steps=1, batch_size=1, learning_rate=1e-3, weight_decay=0, validate_every=2),
    )
