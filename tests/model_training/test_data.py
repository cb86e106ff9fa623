import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_training.data import Case, DataError, load_sample, read_labels
from model_training.layouts.msd import read_msd
from service.bundle.schema import Label, ServiceConfig
from service.errors import PayloadTruncated

WriteNifti = Callable[..., None]


@pytest.fixture
def case(tiny_msd: Path) -> Case:
    """Return one case of the tiny data set."""
    return read_msd(tiny_msd, str)["fold2"][0]


def rewrite(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def test_cases_are_listed_by_split(tiny_msd: Path) -> None:
    """Folds and test set hold the cases of splits.json in its order, each with its person and files."""
    splits = read_msd(tiny_msd, str)

    names = {split: [(case.name, case.person) for case in cases] for split, cases in splits.items()}
    assert names == {
        "fold1": [("a1", "A"), ("a2", "A"), ("b1", "B")],
        "fold2": [("c1", "C")],
        "test": [("d1", "D")],
    }
    assert splits["test"][0].image == tiny_msd / "imagesTr" / "d1.nii.gz"
    assert splits["test"][0].label == tiny_msd / "labelsTr" / "d1.nii.gz"


def test_a_person_in_two_splits_is_refused(tiny_msd: Path) -> None:
    """Two scans of one person on both sides of a split would make the validation a memory test."""
    rewrite(tiny_msd / "splits.json", folds=[["a1", "b1"], ["c1", "a2"]])

    with pytest.raises(DataError, match=r"Person A is in fold1 and in fold2: keep all scans"):
        read_msd(tiny_msd, str)


def test_a_person_in_a_fold_and_in_the_test_set_is_refused(tiny_msd: Path) -> None:
    """The test set is guarded like the folds."""
    rewrite(tiny_msd / "persons.json", A=["a1", "a2", "d1"], D=[])

    with pytest.raises(DataError, match="Person A is in fold1 and in test"):
        read_msd(tiny_msd, str)


def test_a_case_of_nobody_is_refused(tiny_msd: Path) -> None:
    """Without knowing whose scan it is, no split is by person."""
    rewrite(tiny_msd / "persons.json", C=[])

    with pytest.raises(DataError, match="does not say whose scan c1 is"):
        read_msd(tiny_msd, str)


@pytest.mark.parametrize("name", ["splits.json", "persons.json", "imagesTr/a2.nii.gz", "labelsTr/d1.nii.gz"])
def test_a_missing_file_is_named(tiny_msd: Path, name: str) -> None:
    """Before a step is trained it is known that every listed file is there."""
    (tiny_msd / name).unlink()

    with pytest.raises(DataError, match=rf"{name} was not found"):
        read_msd(tiny_msd, str)


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
    """A value that no label has is named: it may be a structure that the recipe forgot."""
    write_nifti(case.label, np.array([0, 1, 2, 7, 0, 0, 0, 9], np.uint8).reshape(2, 2, 2))

    with pytest.raises(DataError, match=r"values \[7, 9\]; the recipe knows \[0, 1, 2\]"):
        read_labels(case, tiny_config)


def test_a_reference_without_any_structure_is_read(
    case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti
) -> None:
    """A scan in which nothing is to be found has an empty mask: no error, every voxel is background."""
    write_nifti(case.label, np.zeros((10, 9, 8), np.uint8))

    _, classes = read_labels(case, tiny_config)

    assert classes.shape == (10, 9, 8)
    assert not classes.any()


def test_a_sample_is_what_serving_would_see(case: Case, tiny_config: ServiceConfig) -> None:
    """The image is z-scored as the bundle declares, the label stays as it was, both on one grid."""
    sample = load_sample(case, tiny_config)

    assert sample.case == case
    assert (sample.image.shape, sample.image.dtype) == ((1, 10, 9, 8), torch.float32)
    assert (sample.label.shape, sample.label.dtype) == ((1, 10, 9, 8), torch.uint8)
    assert sample.image.mean().item() == pytest.approx(0, abs=1e-6)
    assert sample.image.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert sample.label[0, :, 4, 4].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 0, 0]
    assert sample.image[sample.label == 2].min() > sample.image[sample.label == 0].max()


def test_image_and_label_are_turned_together(case: Case, tiny_config: ServiceConfig, write_nifti: WriteNifti) -> None:
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
    """A label is never laid over an image by its indices alone."""
    affine = np.eye(4)
    affine[0, 3] = shift
    label = np.zeros(shape, np.uint8)
    label[5] = 1
    write_nifti(case.label, label, affine)

    with pytest.raises(DataError, match="lies on another grid"):
        load_sample(case, tiny_config)


def test_a_damaged_image_is_refused(case: Case, tiny_config: ServiceConfig) -> None:
    """Training reads scans by the same decoder as serving, which finds the missing end."""
    case.image.write_bytes(case.image.read_bytes()[:-20])

    with pytest.raises(PayloadTruncated):
        load_sample(case, tiny_config)


def test_the_hippocampus_data_are_split_by_person(hippocampus: Path) -> None:
    """The development folds hold 34, 37, 35, 36 and 33 cases, the test set 47, and nobody is in two of them."""
    splits = read_msd(hippocampus, str)

    assert {split: len(cases) for split, cases in splits.items()} == {
        "fold1": 34,
        "fold2": 37,
        "fold3": 35,
        "fold4": 36,
        "fold5": 33,
        "test": 47,
    }
    persons = [{case.person for case in cases} for cases in splits.values()]
    assert len(set.union(*persons)) == sum(map(len, persons))
