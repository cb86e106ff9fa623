from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import Case, load_sample
from model_training.evaluation.evaluate import measure
from model_training.recipes import COMPARISONS, RECIPES
from model_training.recipes.acdc17 import ACDC17, ACDC17_SMALL
from service.bundle.schema import ZScore

Train = Callable[[Recipe, Path], torch.nn.Module]
Shrink = Callable[[Recipe], Recipe]

FOLDS = ["fold1", "fold2", "fold3", "fold4", "fold5"]


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_the_recipes_are_found_by_their_names() -> None:
    """The command line knows both, each bundle by the name of its recipe."""
    assert RECIPES["acdc17"] is ACDC17
    assert RECIPES["acdc17-small"] is ACDC17_SMALL
    assert [ACDC17.service.name, ACDC17_SMALL.service.name] == ["acdc17", "acdc17-small"]


def test_it_trains_as_the_paper_does() -> None:
    """Voxels, intensities, patch, learning rate and steps are those of arXiv 2506.03942."""
    service, schedule = ACDC17.service, ACDC17.schedule

    assert service.spacing_mm == (1.0, 1.0, 5.0)
    assert service.intensity == [ZScore(nonzero=True)]
    assert service.patch_size == (256, 256, 16)
    assert schedule.steps == 600 * 90
    assert (schedule.warmup_steps, schedule.warmup_from) == (2 * 90, 0.5)
    assert (schedule.batch_size, schedule.learning_rate, schedule.weight_decay) == (2, 2e-4, 1e-5)


@pytest.mark.parametrize("recipe", [ACDC17, ACDC17_SMALL], ids=["paper", "small"])
def test_it_trains_and_evaluates(recipe: Recipe, tiny_acdc: Path, shrunk: Shrink, two_steps: Train) -> None:
    """Two steps on small patches of the genuine layout, then a measurement of every structure on the test set."""
    small = shrunk(recipe)

    network = two_steps(small, tiny_acdc)
    measurement = measure(network, small.service, small.cases(tiny_acdc)["test"], quiet)

    assert list(measurement.class_scores) == ["right ventricle", "myocardium", "left ventricle"]
    assert [(case.case, case.person) for case in measurement.cases] == [
        ("patient101_frame01", "patient101"),
        ("patient101_frame12", "patient101"),
    ]


def test_the_real_data_are_split_by_patient(acdc: Path) -> None:
    """The folds hold 11 patients each, the test set 15, both frames of each, and nobody is in two of them."""
    splits = ACDC17.cases(acdc)

    assert {split: len(cases) for split, cases in splits.items()} == dict.fromkeys(FOLDS, 22) | {"test": 30}
    persons = [{case.person for case in cases} for cases in splits.values()]
    assert [len(members) for members in persons] == [11, 11, 11, 11, 11, 15]
    assert len(set.union(*persons)) == 70


def test_a_real_case_becomes_a_sample(acdc: Path) -> None:
    """On the voxels that the files declare nothing is resampled, and all three structures are there."""
    case = ACDC17_SMALL.cases(acdc)["fold1"][0]
    shape = nib.Nifti1Image.from_filename(case.images[0]).shape

    sample = load_sample(case, ACDC17_SMALL.service)

    assert sample.image.shape == sample.label.shape == (1, *shape)
    assert sample.image.mean().item() == pytest.approx(0, abs=1e-4)
    assert sample.label.unique().tolist() == [0, 1, 2, 3]
    # Blood is brighter than muscle in cine MR.
    assert sample.image[sample.label == 3].mean() > sample.image[sample.label == 2].mean()


def test_structures_have_colours_of_their_own() -> None:
    """No two labels share a colour; both ventricles carry one code and their side."""
    labels = ACDC17.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 3]
    assert len({label.color for label in labels}) == 4
    assert [label.code.value for label in labels if label.code] == ["21814001", "74281007", "21814001"]
    assert [[code.meaning for code in label.modifiers] for label in labels] == [[], ["Right"], [], ["Left"]]


def test_the_card_is_measured_on_patients_who_were_not_trained_on() -> None:
    """Fold 5 is neither trained on nor is it the test set, which no recipe names."""
    assert ACDC17.train_splits == ("fold1", "fold2", "fold3", "fold4")
    assert ACDC17.validation_split == "fold5"


def test_the_population_counts_persons_and_cases() -> None:
    """Two frames of one patient are one person."""
    frames = [Case(name, "patient001", (Path(name),), Path(name)) for name in ("ED", "ES")]

    population = ACDC17.population(frames)

    assert (population.n_persons, population.n_cases, population.protocol) == (1, 2, "held-out")


def test_no_distance_is_given_in_mm() -> None:
    """The true voxel size of these files is lost, so that no surface distance can be measured."""
    assert ACDC17.nsd_tolerance_mm is None


def test_the_compared_configurations_differ_in_their_loss_alone() -> None:
    """Dice and cross-entropy, hard bins and soft bins train the small network on the same schedule."""
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
    """CC BY-NC-SA asks for the licence, its address, the source and what was changed."""
    notice = ACDC17.licence_notice

    for words in ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/", "ACDC 2017", "Changes:"):
        assert words in notice
