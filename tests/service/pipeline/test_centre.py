from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from service.bundle.schema import Label, Landmark, Locator, Network, Part, ServiceConfig
from service.errors import AnatomyNotFound
from service.pipeline.centre import place
from service.pipeline.infer import infer
from service.pipeline.locate import Box, Boxes
from service.pipeline.predict import segment
from service.pipeline.preprocess import preprocess
from service.volume import Volume

Points = npt.NDArray[np.float64]
BLOBS = {"left": (-20.0, 3.0, 5.0), "right": (22.0, -4.0, 2.0)}
EDGES = (6, 8, 4)


class Bright(nn.Module):
    """A network that marks bright voxels as class 1, with class 2 next."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, (1, 3, D, H, W)."""
        bright = (image > self.threshold).float()
        return torch.cat([5 * (1 - bright), 9 * bright, 4 * bright], dim=1)


@pytest.fixture(name="config")
def _config(tiny_config: ServiceConfig) -> ServiceConfig:
    """Return the tiny bundle with a locator of two parts."""

    def labels(first: int) -> list[Label]:
        return [Label(value=first + n, name=f"{first + n}", color=(0, 0, 0)) for n in (1, 2)]

    parts = [
        Part(name=name, landmark=name, search_mm=(20, 24, 20), size_mm=(12, 14, 10), labels=labels(first))
        for name, first in (("left", 10), ("right", 20))
    ]
    locator = Locator(
        anatomy="blob",
        extent_mm=(40, 40, 40),
        network=Network(name="UNet", arguments={}),
        spacing_mm=4,
        landmarks=[
            Landmark(name=name, centre_mm=centre, usual_ml=0.5, volume_ml=(0.1, 1)) for name, centre in BLOBS.items()
        ],
        least_landmarks=4,
        residual_mm=5,
        scale=(0.8, 1.2),
        parts=parts,
    )
    return tiny_config.model_copy(update={"locator": locator, "patch_size": (12, 14, 10)})


def scan(flip: tuple[int, int, int] = (1, 1, 1), centres: dict[str, tuple[float, float, float]] = BLOBS) -> Volume:
    """Return a scan of 70 mm edges with a bright box at each centre."""
    shape = (70, 70, 70)
    affine = np.diag([*flip, 1.0]).astype(float)
    affine[:3, 3] = -affine[:3, :3] @ [34.5, 34.5, 34.5]
    mm = (affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]).T
    array = np.zeros(len(mm), np.float32)
    for centre in centres.values():
        array[(np.abs(mm - centre) <= np.array(EDGES) / 2).all(axis=1)] = 100
    return Volume(array.reshape(1, *shape), affine, b"")


def near(config: ServiceConfig, off: tuple[float, float, float] = (3.0, -3.5, 3.0)) -> Boxes:
    """Return boxes some millimetres off."""
    assert config.locator is not None
    boxes = [Box(part, np.array(BLOBS[part.name]) + off, np.eye(3)) for part in config.locator.parts]
    return Boxes(boxes, {})


@pytest.mark.parametrize("off", [(0.0, 0.0, 0.0), (3.0, -3.5, 3.0), (-4.0, 5.0, -4.0)], ids=str)
def test_boxes_move_about_what_is_found_in_them(off: tuple[float, float, float], config: ServiceConfig) -> None:
    """From different starting points they end at the structure's centre, within a voxel."""
    placement = place(Bright(), scan(), near(config, off), config)

    assert [part.part.name for part in placement.placed] == ["left", "right"]
    assert placement.absent == {}
    for part in placement.placed:
        assert np.abs(part.centre_mm - BLOBS[part.part.name]).max() <= 1
        assert part.volume.shape == (12, 14, 10)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)], ids=str)
def test_the_parts_come_back_to_their_voxels(flip: tuple[int, int, int], config: ServiceConfig) -> None:
    """Voxels of the two structures get the label of their side, and all others are background."""
    volume = scan(flip)
    placement = place(Bright(), volume, near(config), config)
    logits = torch.stack([infer(Bright(), preprocess(part.volume, config)[0], config) for part in placement.placed])

    actual = segment(logits, placement.grid(volume, config), config.located)

    x = (volume.affine[:3, :3] @ np.indices(volume.shape).reshape(3, -1) + volume.affine[:3, 3:])[0]
    bright = volume.array_CDHW[0] > 0
    expected = np.where(bright, np.where(x.reshape(volume.shape) < 0, 11, 21), 0)
    # The boxes rest on half voxels of the scan: logits at the edges are means of two, so a shell may differ.
    assert (actual.mask != expected).sum() < 0.5 * bright.sum()
    for value in (11, 21):
        ours, theirs = np.argwhere(actual.mask == value), np.argwhere(expected == value)
        assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < 0.6
    assert set(np.unique(actual.mask)) == {0, 11, 21}
    assert actual.confidence.min() >= 1 / 3
    assert (actual.confidence[0] == 1).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda blobs: {"left": blobs["left"]}, "the network marks nothing where it should be"),
        (lambda blobs: blobs | {"right": (33.0, -4.0, 2.0)}, "of its box lies in the scan"),
        (lambda blobs: blobs | {"right": (15.0, -4.0, 2.0)}, "lies too far from where it should be"),
    ],
    ids=["nothing there", "at the edge", "too far"],
)
def test_a_part_that_is_not_there_is_named(
    change: Callable[[dict[str, tuple[float, float, float]]], dict[str, tuple[float, float, float]]],
    why: str,
    config: ServiceConfig,
) -> None:
    """The other part is segmented all the same."""
    centres = change(dict(BLOBS))
    boxes = near(config)
    if centres.get("right", (0,))[0] != 15.0:
        boxes.found[1] = Box(boxes.found[1].part, np.array(centres.get("right", BLOBS["right"])), np.eye(3))

    placement = place(Bright(), scan(centres=centres), boxes, config)

    assert [part.part.name for part in placement.placed] == ["left"]
    assert why in placement.absent["right"]


def test_where_no_part_is_there_nothing_is_found(config: ServiceConfig) -> None:
    """The error names both parts."""
    with pytest.raises(AnatomyNotFound, match=r"left: the network marks nothing.*right: the network marks nothing"):
        place(Bright(), scan(centres={}), near(config), config)


@pytest.mark.gpu
def test_a_gpu_centres_alike(config: ServiceConfig, gpu_device: torch.device) -> None:
    """Crops and segmentations on the device move each box to where the CPU's rests."""
    actual, expected = (place(Bright().to(device), scan(), near(config), config) for device in (gpu_device, "cpu"))

    assert len(actual.placed) == len(expected.placed) == 2
    for placed, other in zip(actual.placed, expected.placed, strict=True):
        assert np.abs(placed.centre_mm - other.centre_mm).max() < 0.1
