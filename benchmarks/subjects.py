"""The subjects of the benchmarks: a scan with its reference, and a bundle whose network was trained on similar scans.

The phantoms resemble an abdominal CT as far as time and memory are concerned: air, a body with ellipsoids, noise. Their networks
are trained and exported with the ordinary commands' code, for a few hundred steps; scans and bundles are kept outside the
repository.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Compose, RandSpatialCropd, SpatialPadd

from model_training.config import Recipe, Schedule
from model_training.data.case import Case
from model_training.export.bundle import export
from model_training.recipes import RECIPES
from model_training.training.parallel import ALONE
from model_training.training.train import WEIGHTS, train
from service.bundle.card import Population
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.bundle.schema import Label, Network, ServiceConfig, Window
from service.engines.machine import available

CACHE = Path.home() / ".cache" / "calibrant-benchmarks"
"""Folder of trained bundles and generated scans, outside the repository."""

CT_SHAPE, CT_SPACING_MM = (512, 512, 100), (0.8, 0.8, 2.5)
TRAINING_SHAPE, TRAINING_SPACING_MM = (112, 112, 96), (1.5, 1.5, 1.5)
PATCH = 48
"""Edge of the phantom's training patches in voxels; windows have 96."""

AIR_HU, BODY_HU, NOISE_HU = -1000, -100, 12
LEVELS, LEVEL_HU = 4, 120
STRIPE_HU, STRIPE_MM = 80, 12.0
RADIUS_MM = (15, 35)
ML_PER_ELLIPSOID = 500


@dataclass(frozen=True)
class Subject:
    """One scan and the bundle that segments it."""

    scan: Path
    reference: Path
    bundle: Path


def hippocampus(data: Path) -> Subject:
    """Return a case of the test split and the shipped bundle."""
    case = RECIPES["hippocampus"].cases(data / "Task04_Hippocampus")["test"][0]
    return Subject(case.images[0], case.label, SHIPPED / DEFAULT_MODEL)


def cardiac(data: Path) -> Subject:
    """Return a frame of ACDC's test split and a bundle of acdc17-small, trained for fewer steps than in the recipe."""
    recipe = RECIPES["acdc17-small"]
    schedule = replace(recipe.schedule, steps=300, warmup_steps=30, validate_every=300)
    recipe = replace(recipe, schedule=schedule)
    case = recipe.cases(data / "ACDC")["test"][0]
    return Subject(case.images[0], case.label, trained(recipe, data / "ACDC"))


def ct(classes: int) -> Subject:
    """Return a generated scan of 512 x 512 x 100 voxels and a bundle with this number of classes."""
    folder = CACHE / "phantom" / f"{classes}"
    whole = _drawn(folder, "whole", CT_SHAPE, CT_SPACING_MM, classes, seed=0)
    return Subject(whole.images[0], whole.label, trained(phantom_recipe(classes), folder))


def trained(recipe: Recipe, data: Path) -> Path:
    """Return the bundle of a recipe; the first time it is trained on one thread and exported."""
    name = recipe.service.name
    run, bundle = CACHE / "runs" / name, CACHE / "bundles" / name
    if not (run / WEIGHTS).exists():
        torch.set_num_threads(1)
        train(recipe, data, run, seed=0, group=ALONE)
    if not bundle.exists():
        export(recipe, data, run, bundle, lambda _case: None, engine_kinds=available(torch.device("cpu")))
    return bundle


def phantom_recipe(classes: int) -> Recipe:
    """Return the recipe of the phantom's SegResNet with 16 filters, with values usual for abdominal CT."""
    labels = [Label(value=0, name="background", color=(0, 0, 0))]
    labels += [Label(value=c, name=f"ellipsoid {c}", color=(16 * c, 255 - 16 * c, 128)) for c in range(1, classes)]
    network = {"spatial_dims": 3, "in_channels": 1, "out_channels": classes, "init_filters": 16}
    return replace(
        RECIPES["acdc17-small"],
        service=ServiceConfig(
            name=f"phantom-{classes}",
            version="0.1.0",
            description="Ellipsoids in a body.",
            modality="CT",
            anatomy="a generated phantom",
            channels=["CT"],
            network=Network(name="SegResNet", arguments=network),
            spacing_mm=(1.5, 1.5, 1.5),
            intensity=[Window(low=-200, high=350)],
            patch_size=(96, 96, 96),
            overlap=0.25,
            labels=labels,
            temperature=[1.0] * classes,
        ),
        cases=partial(_phantoms, classes=classes),
        augmentation=small_patches,
        train_splits=("train",),
        validation_split="validation",
        population=_population,
        limits="a generated phantom",
        ace_weight=0.0,
        schedule=Schedule(
            steps=1200, warmup_steps=20, batch_size=1, learning_rate=2e-3, weight_decay=1e-5, validate_every=600
        ),
    )


def small_patches(_: ServiceConfig) -> Compose:
    """Cut a random patch."""
    both, size = ("image", "label"), (PATCH,) * 3
    return Compose([SpatialPadd(both, size), RandSpatialCropd(both, size, random_size=False)])


def _population(cases: list[Case]) -> Population:
    return Population(
        dataset="generated phantom",
        citation="none",
        licence="none",
        modality="CT",
        anatomy="ellipsoids in a body",
        protocol="held-out",
        split="validation",
        n_persons=len(cases),
        n_cases=len(cases),
    )


def _phantoms(folder: Path, *, classes: int) -> dict[str, list[Case]]:
    draw: Callable[[str, int], Case] = lambda name, seed: _drawn(  # noqa: E731 - one argument list for both splits
        folder, f"{name}{seed}", TRAINING_SHAPE, TRAINING_SPACING_MM, classes, seed
    )
    return {"train": [draw("train", n) for n in range(1, 5)], "validation": [draw("validation", n) for n in (5, 6)]}


def _drawn(
    folder: Path, name: str, shape: tuple[int, ...], spacing_mm: tuple[float, ...], classes: int, seed: int
) -> Case:
    """Return the files of a phantom, which is drawn the first time."""
    scan, label = folder / f"{name}.nii.gz", folder / f"{name}-label.nii.gz"
    if not label.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file, array in zip((scan, label), phantom(shape, spacing_mm, classes, seed), strict=True):
            nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1])), file)
    return Case(name, name, (scan,), label)


def phantom(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], classes: int, seed: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return intensities in HU and labels, (D, H, W): each class is ellipsoids with their own grey level and stripes.

    Without stripes, sixteen levels would differ in their absolute intensity only, which a network with group norms hardly sees.
    """
    random = np.random.default_rng(seed)
    size = np.array(shape) * spacing_mm
    axes = [np.arange(n, dtype=np.float32) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    body = ((x / size[0] - 0.5) / 0.425) ** 2 + ((y / size[1] - 0.5) / 0.35) ** 2 + 0 * z < 1
    hu = np.where(body, np.float32(BODY_HU), np.float32(AIR_HU))
    labels = np.zeros(shape, np.uint8)
    per_class = max(2, round(float(size.prod()) / 1000 / ML_PER_ELLIPSOID / (classes - 1)))
    for c in [*range(1, classes)] * per_class:
        centre, radius = random.uniform(0.2, 0.8, 3) * size, random.uniform(*RADIUS_MM, 3)
        inside = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
        inside = inside + ((z - centre[2]) / radius[2]) ** 2 < 1
        along = [0 * z, x, y, z][c // LEVELS]
        texture = BODY_HU + LEVEL_HU * (c % LEVELS) + STRIPE_HU * np.sin(2 * np.pi * along / STRIPE_MM)
        labels[inside], hu[inside] = c, np.broadcast_to(texture, shape)[inside]
    hu += random.normal(scale=NOISE_HU, size=shape).astype(np.float32)
    return np.rint(hu).astype(np.int16), labels
