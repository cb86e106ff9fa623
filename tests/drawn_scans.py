"""Scans for a clone without the shared data: crops of the MNI152 template, which nilearn carries.

They look like the Medical Segmentation Decathlon's hippocampus task: its folders and names, crops of 34 x 52 x 35
voxels of 1 mm, intensities of any scale, splits by person. The labels are the shipped model's own answer on the whole
template, so nothing here says how well it segments: tests of that take `real_hippocampus`.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from service.bundle.reader import load_bundle
from service.bundle.registry import SHIPPED
from service.commands.demo import template
from service.pipeline.run import run_case
from service.result.files import MASK

SIDES = {"left": (11, 12), "right": (21, 22)}
"""Label values of the anterior and the posterior part of each side in the answer for a whole head."""

FOLDS = [["hippocampus_001", "hippocampus_002"], ["hippocampus_003", "hippocampus_004"], ["hippocampus_006"]]
FOLDS += [["hippocampus_007", "hippocampus_008"], ["hippocampus_011"]]
TEST = [f"hippocampus_{n:03}" for n in (15, 25, 26, 45, 46, 51, 52, 61)]
SHAPE = (34, 52, 35)


def draw_hippocampus(root: Path) -> Path:
    """Write the data set and return its folder."""
    data = root / "Task04_Hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    head, labels = _segmented(root)
    names = sorted([name for fold in FOLDS for name in fold] + TEST)
    persons: dict[str, list[str]] = {}
    for name in names:
        number = int(name[-3:])
        persons.setdefault(str((number + 1) // 2), []).append(name)
        image, label = _crop(head, labels, "left" if number % 2 else "right", number)
        nib.save(image, data / "imagesTr" / f"{name}.nii.gz")
        nib.save(label, data / "labelsTr" / f"{name}.nii.gz")
    (data / "persons.json").write_text(json.dumps(persons))
    (data / "splits.json").write_text(json.dumps({"unit": "person", "folds": FOLDS, "test": TEST}))
    return data


def _segmented(work: Path) -> tuple[nib.Nifti1Image, npt.NDArray[np.uint8]]:
    """Return the template in 1 mm and the label values of both hippocampi in it."""
    out = work / "template"
    out.mkdir()
    bundle = load_bundle(SHIPPED / "hippocampus-mr", torch.device("cpu"))
    run_case(template(), bundle, out, lambda _stage, _done: None, ["mask"])
    head, mask = (nib.Nifti1Image.from_filename(path) for path in (template(), out / MASK))
    return head, np.asarray(mask.dataobj)


def _crop(
    head: nib.Nifti1Image, labels: npt.NDArray[np.uint8], side: str, seed: int
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return a crop about one hippocampus, moved by up to 3 voxels, with noise and a scale of its own, and its labels."""
    rng = np.random.default_rng(seed)
    inside = np.isin(labels, SIDES[side])
    middle = np.argwhere(inside).mean(axis=0)
    low = np.rint(middle - np.array(SHAPE) / 2).astype(int) + rng.integers(-3, 4, 3)
    box = tuple(slice(start, start + n) for start, n in zip(low, SHAPE, strict=True))
    voxels = np.asarray(head.dataobj, np.float64)[box]
    voxels = (voxels + rng.normal(0, 0.01 * voxels.max(), SHAPE)) * rng.uniform(0.5, 50)
    affine = head.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    anterior, posterior = SIDES[side]
    label = np.where(labels[box] == anterior, 1, np.where(labels[box] == posterior, 2, 0))
    return (
        nib.Nifti1Image(voxels.astype(np.float32), affine),
        nib.Nifti1Image(label.astype(np.uint8), affine),
    )
