from pathlib import Path
from typing import ClassVar

import nibabel as nib
import pytest

from model_training.data.case import load_sample
from model_training.recipes import COMPARISONS
from model_training.recipes.acdc17 import ACDC17, ACDC17_SMALL
from service.bundle.schema import ZScore
from tests.model_training.recipes.contract import RecipeContract

FOLDS = ["fold1", "fold2", "fold3", "fold4", "fold5"]


class TestAcdc17(RecipeContract):
    """The paper's recipe and its small variant."""

    name = "acdc17"
    data_set = "tiny_acdc"
    structures: ClassVar[list[str]] = ["right ventricle", "myocardium", "left ventricle"]
    unknown_label = 4


def test_it_trains_as_the_paper_does() -> None:
    """Voxels, intensities, patch, learning rate and steps are those of arXiv 2506.03942."""
    service, schedule = ACDC17.service, ACDC17.schedule

    assert service.spacing_mm == (1.0, 1.0, 5.0)
    assert service.intensity == [ZScore(nonzero=True)]
    assert service.patch_size == (256, 256, 16)
    assert schedule.steps == 600 * 90
    assert (schedule.warmup_steps, schedule.warmup_from) == (2 * 90, 0.5)
    assert (schedule.batch_size, schedule.learning_rate, schedule.weight_decay) == (2, 2e-4, 1e-5)


def test_the_real_data_are_split_by_patient(acdc: Path) -> None:
    """Each fold holds both frames of 11 patients, the test set those of 15, and no patient is in two of them."""
    splits = ACDC17.cases(acdc)

    assert {split: len(cases) for split, cases in splits.items()} == dict.fromkeys(FOLDS, 22) | {"test": 30}
    persons = [{case.person for case in cases} for cases in splits.values()]
    assert [len(members) for members in persons] == [11, 11, 11, 11, 11, 15]
    assert len(set.union(*persons)) == 70


def test_a_real_case_becomes_a_sample(acdc: Path) -> None:
    """At the declared voxel size nothing is resampled, and all three structures are present."""
    case = ACDC17_SMALL.cases(acdc)["fold1"][0]
    shape = nib.Nifti1Image.from_filename(case.images[0]).shape

    sample = load_sample(case, ACDC17_SMALL.service)

    assert sample.image.shape == sample.label.shape == (1, *shape)
    assert sample.image.mean().item() == pytest.approx(0, abs=1e-4)
    assert sample.label.unique().tolist() == [0, 1, 2, 3]
    # Blood is brighter than muscle in cine MR.
    assert sample.image[sample.label == 3].mean() > sample.image[sample.label == 2].mean()


def test_structures_have_codes() -> None:
    """Both ventricles have one code and a modifier for the side."""
    labels = ACDC17.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 3]
    assert len({label.color for label in labels}) == 4
    assert [label.code.value for label in labels if label.code] == ["21814001", "74281007", "21814001"]
    assert [[code.meaning for code in label.modifiers] for label in labels] == [[], ["Right"], [], ["Left"]]


def test_the_card_is_measured_on_patients_who_were_not_trained_on() -> None:
    """The card is measured on fold 5, which is neither trained on nor the test set."""
    assert ACDC17.train_splits == ("fold1", "fold2", "fold3", "fold4")
    assert ACDC17.validation_split == "fold5"


def test_no_distance_is_given_in_mm() -> None:
    """The files do not state the true voxel size, so the recipe has no surface tolerance."""
    assert ACDC17.nsd_tolerance_mm is None


def test_the_compared_configurations_differ_in_their_loss_alone() -> None:
    """The configurations share network and schedule and differ only in the loss."""
    compared = COMPARISONS["acdc17-small"]

    assert {name: (one.binning, one.ace_weight) for name, one in compared.items()} == {
        "dice-ce": ("soft", 0.0),
        "hard-1": ("hard", 1.0),
        "soft-0.3": ("soft", 0.3),
        "dice-ce-then-soft-0.3": ("soft", 0.3),
    }
    assert all(one.service == ACDC17_SMALL.service for one in compared.values())
    assert all(one.schedule == ACDC17_SMALL.schedule for one in compared.values())


def test_the_weights_keep_the_licence_of_the_data() -> None:
    """The notice has what CC BY-NC-SA requires: licence, address, source and changes."""
    notice = ACDC17.licence_notice

    for words in ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/", "ACDC 2017", "Changes:"):
        assert words in notice
