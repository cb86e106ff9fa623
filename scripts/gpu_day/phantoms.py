"""Drawn scans, and bundles and measurements that are made for one run of the kit and thrown away with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from service.bundle.card import CalibrationCard
from service.bundle.description import CARD, CONFIG, WEIGHTS, BundleDescription, describe_bundle
from service.bundle.manifest import sha256_of, write_manifest
from service.bundle.network import build_network
from service.bundle.overlay import write_overlay
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.bundle.schema import ServiceConfig
from service.engines.machine import available, device_kind

CROP: Final = (34, 52, 35)
GREY, WHITE, FLUID, NOISE = 70.0, 100.0, 20.0, 3.0

HEAD: Final = "head.nii.gz"
"""A template of a head in the folder of wheels, for machines without nilearn."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """The shipped bundle with a scan that it segments.

    Args:
        description: of the bundle.
        scan: a drawn crop about a hippocampus.
        state: state directory in which its engines count as measured on the device.
    """

    description: BundleDescription
    scan: Path
    state: Path


@contextmanager
def shipped(device: torch.device) -> Iterator[Shipped]:
    """Yield the shipped bundle, served on a device, with its drawn scan; both are removed afterwards."""
    with TemporaryDirectory() as folder:
        description = describe_bundle(SHIPPED / DEFAULT_MODEL)
        scan = save(crop(), Path(folder) / "crop.nii.gz")
        vouch(description, device, Path(folder))
        yield Shipped(description, scan, Path(folder))


def crop(seed: int = 0) -> npt.NDArray[np.float32]:
    """Return a crop of T1-weighted MR, (34, 52, 35) voxels of 1 mm: white matter, a bent grey tube, fluid beside it."""
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in CROP], indexing="ij")
    voxels = np.full(CROP, WHITE)
    voxels[(((x - 8) / 4) ** 2 + ((z - 3) / 3) ** 2 + (y / 22) ** 2) < 1] = FLUID
    voxels[((x / 6) ** 2 + ((z + 0.006 * y**2) / 5) ** 2 + (y / 20) ** 2) < 1] = GREY
    voxels[((x / 7) ** 2 + ((y - 24) / 7) ** 2 + ((z + 2) / 7) ** 2) < 1] = GREY
    voxels[:3], voxels[:, :, :4] = GREY, FLUID
    noise = np.random.default_rng(seed).normal(0, NOISE, CROP)
    return (gaussian_filter(voxels, 0.6) + noise).astype(np.float32)


def save(voxels: npt.NDArray[np.generic], path: Path, spacing_mm: tuple[float, ...] = (1, 1, 1)) -> Path:
    """Write voxels as a NIfTI file and return its path."""
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing_mm, 1])), path)
    return path


def head(wheels: Path) -> Path | None:
    """Return a scan of a head: nilearn's template, or that of the folder of wheels; None without either."""
    from service.commands.demo import template
    from service.errors import SettingsError

    try:
        return template()
    except SettingsError:
        return wheels / HEAD if (wheels / HEAD).is_file() else None


def vouch(description: BundleDescription, device: torch.device, state: Path) -> None:
    """Let every engine of the device count as measured: with the card's own figures, for this run only."""
    (stated, *_) = description.card.measurements
    for engine_kind in available(device):
        facts = {"engine": engine_kind.engine, "precision": engine_kind.precision, "device": device_kind(device)}
        write_overlay(state, description, stated.model_copy(update=facts))


def make_bundle(config: ServiceConfig, weights: dict[str, torch.Tensor] | None, root: Path) -> BundleDescription:
    """Write a bundle with the shipped card's figures in place of its own.

    Args:
        config: declares the network.
        weights: of the network; random ones if None.
        root: folder of the bundle.
    """
    (root / WEIGHTS).parent.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(weights or build_network(config.network).state_dict(), root / WEIGHTS)
    (root / CONFIG).write_text(config.model_dump_json())
    (root / "LICENSE").write_text("No rights reserved.\n")
    card = describe_bundle(SHIPPED / DEFAULT_MODEL).card.model_copy(
        update={
            "model": config.name,
            "model_version": config.version,
            "weights_sha256": sha256_of(root / WEIGHTS),
            "config_sha256": sha256_of(root / CONFIG),
            "locating": None,
            "shift_tests": (),
            "resolutions": (),
        }
    )
    (root / CARD).write_text(json.dumps(json.loads(CalibrationCard.model_dump_json(card))))
    write_manifest(root)
    return describe_bundle(root)
