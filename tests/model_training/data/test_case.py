import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_training.data.case import Case, DataError, load_sample, read_labels, read_scan
from model_training.data.layouts.msd import read_msd
from service.bundle.schema import Label, ServiceConfig

WriteNifti = Callable[..., None]


@pytest.fixture
def case(tiny_msd: Path) -> Case:
    """Return one case of the tiny data set."""
    return read_msd(tiny_msd, str)["fold2"][0]


def test_label_values_become_class_indices(case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti) -> None:
    """The position of a label in the declaration counts, not its value: 5 is class 1, 2 is class 2."""
    labels = [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=5, name="front", color=(1, 1, 1)),
        Label(value=2, name="back", color=(2, 2, 2)),
    ]
    write_nifti(case.label, np.array([0, 2, 5, 0, 5, 5, 2, 0], np.int16).reshape(2, 2, 2))

    volume, classes = read_labels(case, tiny_config.model_copy(update={"labels": labels}))

    assert volume.shape == (2, 2, 2)
    assert classes.dtype == np.uint8
    assert classes.ravel().tolist() == [0, 2, 1, 0, 1, 1, 2, 0]


def test_an_unknown_label_value_is_refused(case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti) -> None:
    """The message lists values that no label of the recipe has."""
    write_nifti(case.label, np.array([0, 1, 2, 7, 0, 0, 0, 9], np.uint8).reshape(2, 2, 2))

    with pytest.raises(DataError, match=r"c1\.nii\.gz holds the values \[7, 9\]; the recipe knows \[0, 1, 2\]"):
        read_labels(case, tiny_config)


def test_a_reference_without_any_structure_is_read(
    case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti
) -> None:
    """An empty label file is read without an error: every voxel is background."""
    write_nifti(case.label, np.zeros((10, 9, 8), np.uint8))

    _, classes = read_labels(case, tiny_config)

    assert classes.shape == (10, 9, 8)
    assert not classes.any()


def test_a_sample_is_what_serving_would_see(case: Case, tiny_config: ServiceConfig) -> None:
    """The image is z-scored as the bundle declares, the label is unchanged, and both have one grid."""
    sample = load_sample(case, tiny_config)

    assert sample.case == case
    assert (sample.image.shape, sample.image.dtype) == ((1, 10, 9, 8), torch.float32)
    assert (sample.label.shape, sample.label.dtype) == ((1, 10, 9, 8), torch.uint8)
    assert sample.image.mean().item() == pytest.approx(0, abs=1e-6)
    assert sample.image.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert sample.label[0, :, 4, 4].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 0, 0]
    assert sample.image[sample.label == 2].min() > sample.image[sample.label == 0].max()


def test_image_and_label_are_reoriented_together(
    case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti
) -> None:
    """A scan stored as LPS comes out as RAS: first and second axis are reversed in both."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 1, 3] = 1
    write_nifti(case.label, label, lps)
    write_nifti(case.images[0], label.astype(np.float32), lps)

    sample = load_sample(case, tiny_config)

    assert torch.nonzero(sample.label[0]).tolist() == [[3, 2, 3]]
    assert torch.nonzero(sample.image[0] > 0).tolist() == [[3, 2, 3]]


def test_image_and_label_stay_aligned_when_resampled(
    case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti
) -> None:
    """From 1 mm to 4 mm the voxels 0, 4 and 8 of nine remain, in the image and in the label."""
    label = np.zeros((9, 3, 3), np.uint8)
    label[[0, 4, 8]] = 1
    write_nifti(case.label, label)
    write_nifti(case.images[0], label.astype(np.float32))

    sample = load_sample(case, tiny_config.model_copy(update={"spacing_mm": (4.0, 1.0, 1.0), "intensity": []}))

    assert sample.image[0, :, 1, 1].tolist() == [1.0, 1.0, 1.0]
    assert sample.label[0, :, 1, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "shift"),
    [pytest.param((10, 9, 7), 0.0, id="fewer voxels"), pytest.param((10, 9, 8), 1.0, id="one voxel further")],
)
def test_a_label_on_another_grid_is_refused(
    case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti, shape: tuple[int, ...], shift: float
) -> None:
    """A label with another shape or affine than its image is refused."""
    affine = np.eye(4)
    affine[0, 3] = shift
    label = np.zeros(shape, np.uint8)
    label[5] = 1
    write_nifti(case.label, label, affine)

    with pytest.raises(DataError, match="lies on another grid"):
        load_sample(case, tiny_config)


def test_channels_are_stacked_in_order(case: Case, tmp_path: Path, write_nifti: WriteNifti) -> None:
    """Each file of a case is one channel of the volume, in the order in which the case names them."""
    for value in (3, 5):
        write_nifti(tmp_path / f"{value}.nii.gz", np.full((10, 9, 8), value, np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))

    scan = read_scan(dataclasses.replace(case, images=(tmp_path / "5.nii.gz", tmp_path / "3.nii.gz")))

    assert scan.array_CDHW.shape == (2, 10, 9, 8)
    assert [np.unique(channel).tolist() for channel in scan.array_CDHW] == [[5], [3]]
    assert scan.spacing_mm.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("shape", "spacing", "reason"),
    [
        pytest.param((10, 9, 7), 1.0, r"\(10, 9, 7\) and \(10, 9, 8\) voxels", id="fewer voxels"),
        pytest.param((10, 9, 8), 1.5, "their affines differ", id="larger voxels"),
    ],
)
def test_a_channel_on_another_grid_is_named(
    case: Case, tmp_path: Path, write_nifti: WriteNifti, shape: tuple[int, ...], spacing: float, reason: str
) -> None:
    """A channel with another shape or affine than the first is refused; the message names both files."""
    other = tmp_path / "other.nii.gz"
    write_nifti(other, np.ones(shape, np.int16), np.diag([spacing, 1.0, 1.0, 1.0]))

    with pytest.raises(DataError, match=rf"other\.nii\.gz lies on another grid than .*c1\.nii\.gz: {reason}"):
        read_scan(dataclasses.replace(case, images=(*case.images, other)))


def test_a_damaged_image_is_named(case: Case, tiny_config: ServiceConfig) -> None:
    """Training reads scans with the service's decoder, which notices the missing end."""
    (image,) = case.images
    image.write_bytes(image.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"imagesTr/c1\.nii\.gz cannot be read\. The gzip stream is cut short"):
        load_sample(case, tiny_config)


def test_a_damaged_label_is_named(case: Case, tiny_config: ServiceConfig) -> None:
    """A label file that is not NIfTI is refused."""
    case.label.write_text("not an image")

    with pytest.raises(DataError, match=r"labelsTr/c1\.nii\.gz cannot be read\. The content is not NIfTI"):
        load_sample(case, tiny_config)


def test_an_image_without_contrast_is_named(case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti) -> None:
    """An image with a single intensity is refused, because it cannot be normalised."""
    write_nifti(case.images[0], np.ones((10, 9, 8), np.int16))

    with pytest.raises(DataError, match=r"imagesTr/c1\.nii\.gz cannot be preprocessed\. Every voxel has the same"):
        load_sample(case, tiny_config)


def test_another_number_of_channels_is_refused(case: Case, tiny_config: ServiceConfig) -> None:
    """A case with fewer or more images than the recipe has channels is refused."""
    with pytest.raises(DataError, match=r"The scan has 2 channels; the model takes 1"):
        load_sample(dataclasses.replace(case, images=case.images * 2), tiny_config)
