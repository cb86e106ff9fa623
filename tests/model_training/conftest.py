"""Fixtures of the training tests: a recipe that takes seconds, a run of it, and tiny data sets in the published layouts."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model_training.config import Recipe, Schedule
from model_training.data.case import DataError
from model_training.data.layouts.msd import read_msd
from model_training.data.transforms import one_model_for_both_sides
from model_training.recipes.hippocampus import HIPPOCAMPUS
from model_training.training.parallel import ALONE
from model_training.training.train import WEIGHTS, train
from service.bundle.network import build_network
from service.bundle.schema import Network, ServiceConfig

WriteNifti = Callable[..., None]

SIZE = (12, 12, 12)
"""Voxels of every image of the tiny data sets."""


@pytest.fixture
def recipe(tiny_config: ServiceConfig) -> Recipe:
    """Return a recipe that trains the tiny network for three steps."""
    schedule = Schedule(steps=3, warmup_steps=1, batch_size=2, learning_rate=1e-2, weight_decay=1e-4, validate_every=2)
    return dataclasses.replace(
        HIPPOCAMPUS,
        service=tiny_config,
        cases=lambda root: read_msd(root, str),
        augmentation=one_model_for_both_sides,  # three steps on spoilt images would end anywhere
        train_splits=("fold1",),
        validation_split="fold2",
        binning="hard",
        ace_weight=1.0,
        ace_after=1,
        schedule=schedule,
    )


@pytest.fixture
def trained(tiny_msd: Path, tmp_path: Path, recipe: Recipe) -> Path:
    """Return the folder of a finished run of the recipe."""
    train(recipe, tiny_msd, tmp_path / "run", seed=0, group=ALONE)
    return tmp_path / "run"


@pytest.fixture
def two_steps(tmp_path: Path) -> Callable[[Recipe, Path], torch.nn.Module]:
    """Return the function that trains a recipe for two steps and returns the network in evaluation mode."""

    def run(recipe: Recipe, data: Path) -> torch.nn.Module:
        watcher = Recorder()
        train(recipe, data, tmp_path / "run", seed=0, group=ALONE, watchers=[watcher])
        assert watcher.steps == [1, 2]
        network = build_network(recipe.service.network)
        network.load_state_dict(load_file(tmp_path / "run" / WEIGHTS))
        return network.eval()

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Recipe, Path], str]:
    """Return the function that tries to train and returns the message with which the data were refused before the first step."""

    def run(recipe: Recipe, data: Path) -> str:
        watcher = Recorder()
        with pytest.raises(DataError) as refusal:
            train(recipe, data, tmp_path / "run", seed=0, group=ALONE, watchers=[watcher])
        assert watcher.steps == []
        return str(refusal.value)

    return run


@pytest.fixture
def shrunk() -> Callable[[Recipe], Recipe]:
    """Return the function that shrinks a recipe to seconds: two steps, the narrowest network, the smallest patch."""

    def shrink(recipe: Recipe) -> Recipe:
        declared = recipe.service.network
        deep = declared.name == "SegResNetDS"
        narrow = {"init_filters": 8} if deep else {"channels": [8, 8, 8, 8]}
        # Four or three halvings must leave more than one voxel for the instance norm.
        patch = (32, 32, 32) if deep else (16, 16, 16)
        network = Network(name=declared.name, arguments=declared.arguments | narrow)
        service = recipe.service.model_copy(update={"network": network, "patch_size": patch})
        schedule = dataclasses.replace(recipe.schedule, steps=2, warmup_steps=1, batch_size=1, validate_every=2)
        return dataclasses.replace(recipe, service=service, schedule=schedule)

    return shrink


@pytest.fixture
def tiny_acdc(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """Return a data set in the layout of ACDC: patients 001 to 005 for training, 101 for testing, ED 1 and ES 12."""
    root = tmp_path / "ACDC"
    for part, number in [*(("training", n) for n in range(1, 6)), ("testing", 101)]:
        folder = root / part / f"patient{number:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
        for frame in ("frame01", "frame12"):
            label = boxes([1, 2, 3])
            write_nifti(folder / f"{folder.name}_{frame}.nii.gz", noisy(label, number))
            write_nifti(folder / f"{folder.name}_{frame}_gt.nii.gz", label)
    return root


@pytest.fixture
def tiny_amos(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """Return a data set in the layout of AMOS22.

    CT 0001 to 0005 and MR 0507 for training, CT 0300 and 0500 and MR 0540 for validation, one without a label to test.
    """
    root = tmp_path / "amos22"
    numbers = {"Tr": [1, 2, 3, 4, 5, 507], "Va": [300, 500, 540]}
    lists = {}
    for part, members in numbers.items():
        names = [f"amos_{number:04d}.nii.gz" for number in members]
        lists[part] = [{"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"} for name in names]
        for folder in (f"images{part}", f"labels{part}"):
            (root / folder).mkdir(parents=True)
        for number, name in zip(members, names, strict=True):
            label = boxes(range(1, 16))
            write_nifti(root / f"images{part}" / name, noisy(label, number), np.diag([1.5, 1.5, 5.0, 1.0]))
            write_nifti(root / f"labels{part}" / name, label, np.diag([1.5, 1.5, 5.0, 1.0]))
    description = {
        "name": "AMOS",
        "modality": {"0": "CT"},
        "training": lists["Tr"],
        "validation": lists["Va"],
        "test": [{"image": "./imagesTs/amos_0111.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture
def tiny_kits(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """Return a data set in the layout of KiTS23: cases 00000 to 00006, whose first axis runs from head to foot."""
    root = tmp_path / "kits23"
    affine = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [-2, 0, 0, 0], [0, 0, 0, 1]], float)
    for number in range(7):
        folder = root / "dataset" / f"case_{number:05d}"
        (folder / "instances").mkdir(parents=True)
        label = boxes([1, 2, 3])
        write_nifti(folder / "imaging.nii.gz", noisy(label, number), affine)
        write_nifti(folder / "segmentation.nii.gz", label, affine)
        write_nifti(folder / "instances" / "kidney_instance-1_annotation-1.nii.gz", label, affine)
    (root / "dataset" / "kits23.json").write_text("[]")
    return root


@pytest.fixture
def tiny_brats(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """Return a data set in the layout of BraTS 2021: seven cases of four channels, 0 outside the brain."""
    root = tmp_path / "brats21"
    for number in range(7):
        folder = root / f"BraTS2021_{number:05d}"
        folder.mkdir(parents=True)
        label = boxes([1, 2, 4])
        for seed, channel in enumerate(("t1", "t1ce", "t2", "flair")):
            image = noisy(label, 10 * number + seed)
            image[-1] = 0
            write_nifti(folder / f"{folder.name}_{channel}.nii.gz", image)
        write_nifti(folder / f"{folder.name}_seg.nii.gz", label)
    return root


def boxes(values: Sequence[int]) -> np.ndarray:
    """Return 12 x 12 x 12 labels: a box of 3 x 3 x 3 voxels for each value, 0 between them."""
    label = np.zeros(SIZE, np.uint8)
    for place, value in enumerate(values):
        i, j, k = (4 * n for n in np.unravel_index(place, (3, 3, 3)))
        label[i : i + 3, j : j + 3, k : k + 3] = value
    return label


def noisy(label: np.ndarray, seed: int) -> np.ndarray:
    """Return an image (int16) whose intensity rises by 20 with the label value, with noise."""
    return np.rint(20 * label + np.random.default_rng(seed).normal(10, 5, label.shape)).astype(np.int16)


class Recorder:
    """A watcher that records the steps."""

    def __init__(self) -> None:
        """Start with none."""
        self.steps: list[int] = []

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Remember the step."""
        del epoch, terms
        self.steps.append(step)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Ignore the scores."""


class Certain(torch.nn.Module):
    """A network with the same probabilities at every voxel."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        """Remember the probabilities of the classes."""
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log(), requires_grad=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C, ...) of the image's size."""
        return self.logits.view(1, -1, 1, 1, 1).expand(len(image), -1, *image.shape[2:])


@pytest.fixture
def certain() -> Callable[[Sequence[float]], torch.nn.Module]:
    """Return the function that builds a network with the same probabilities at every voxel."""
    return Certain
