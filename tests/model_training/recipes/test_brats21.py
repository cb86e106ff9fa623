from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure, measure_one
from model_training.recipes import RECIPES
from model_training.recipes.brats21 import BRATS21, BRATS21_SMALL
from service.bundle.schema import ZScore

Train = Callable[[Recipe, Path], torch.nn.Module]
Shrink = Callable[[Recipe], Recipe]
Refused = Callable[[Recipe, Path], str]
WriteNifti = Callable[..., None]


def quiet(_: Case) -> None:
    """Ignore the progress."""


def a_case(data: Path) -> Case:
    """Return a case that is trained on."""
    return BRATS21.cases(data)["fold1"][0]


def test_the_recipes_are_found_by_their_names() -> None:
    """The command line knows both, each bundle by the name of its recipe."""
    assert RECIPES["brats21"] is BRATS21
    assert RECIPES["brats21-small"] is BRATS21_SMALL
    assert [BRATS21.service.name, BRATS21_SMALL.service.name] == ["brats21", "brats21-small"]


def test_it_trains_as_the_paper_does() -> None:
    """Voxels, intensities, patch, learning rate and steps are those of arXiv 2506.03942."""
    service, schedule = BRATS21.service, BRATS21.schedule

    assert service.spacing_mm == (1.0, 1.0, 1.0)
    assert service.intensity == [ZScore(nonzero=True)]
    assert service.patch_size == (224, 224, 144)
    assert schedule.steps == 1250 * 499
    assert (schedule.warmup_steps, schedule.warmup_from) == (2 * 499, 0.5)
    assert (schedule.batch_size, schedule.learning_rate, schedule.weight_decay) == (2, 1e-4, 1e-5)
    assert schedule.validate_every == 10 * 499


@pytest.mark.parametrize("recipe", [BRATS21, BRATS21_SMALL], ids=["paper", "small"])
def test_it_trains_and_evaluates(recipe: Recipe, tiny_brats: Path, shrunk: Shrink, two_steps: Train) -> None:
    """Two steps on small patches of the genuine layout, then a measurement of every structure on the test set."""
    small = shrunk(recipe)

    network = two_steps(small, tiny_brats)
    measurement = measure(network, small.service, small.cases(tiny_brats)["test"], quiet)

    assert list(measurement.class_scores) == ["whole tumour", "tumour core", "enhancing tumour"]
    assert [case.case for case in measurement.cases] == [case.name for case in BRATS21.cases(tiny_brats)["test"]]
    voxels = 12 * 12 * 12
    assert all(sum(row) == voxels for case in measurement.cases for row in case.count)


def test_an_unknown_label_value_is_refused(
    tiny_brats: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A value that the recipe does not know is named with its file before the first step."""
    label = a_case(tiny_brats).label
    image = nib.Nifti1Image.from_filename(label)
    write_nifti(label, np.where(image.dataobj == np.uint8(1), 3, image.dataobj).astype(np.uint8), image.affine)

    assert f"{label} holds the values [3]; the recipe knows" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_a_label_on_another_grid_is_refused(
    tiny_brats: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A label whose header puts it elsewhere is named before the first step."""
    label = a_case(tiny_brats).label
    image = nib.Nifti1Image.from_filename(label)
    moved = image.affine.copy()
    moved[0, 3] += 1.0
    write_nifti(label, np.asarray(image.dataobj), moved)

    assert f"{label} lies on another grid than" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_a_missing_label_is_refused(tiny_brats: Path, shrunk: Shrink, refused: Refused) -> None:
    """A label that is not there is named before the first step."""
    label = a_case(tiny_brats).label
    label.unlink()

    assert f"{label} was not found" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_a_damaged_scan_is_refused(tiny_brats: Path, shrunk: Shrink, refused: Refused) -> None:
    """A scan whose end is missing is named before the first step."""
    scan = a_case(tiny_brats).images[-1]
    scan.write_bytes(scan.read_bytes()[:-20])

    assert f"{scan} cannot be read. The gzip stream is cut short" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_structures_have_colours_of_their_own() -> None:
    """No two labels share a colour, and the codes are of SNOMED CT."""
    labels = BRATS21.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 4]
    assert len({label.color for label in labels}) == len(labels)
    assert {label.name: label.code.value for label in labels if label.code} == {
        "necrotic tumour core": "6574001",
        "oedema": "79654002",
    }


def test_the_population_counts_persons_and_cases() -> None:
    """The card says of whom it speaks, and that they were held out."""
    population = BRATS21.population([Case(name, name, (Path(name),), Path(name)) for name in "AB"])

    assert (population.n_persons, population.n_cases, population.protocol) == (2, 2, "held-out")


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The licence file says that the terms accepted on Synapse apply."""
    notice = BRATS21.licence_notice

    for words in ("The terms of the data set apply", "Synapse", "arXiv:2107.02314"):
        assert words in notice


def test_a_region_is_as_probable_as_its_labels_together(
    tiny_brats: Path, certain: Callable[[Sequence[float]], torch.nn.Module]
) -> None:
    """Where the classes have 0.4, 0.3, 0.2 and 0.1 everywhere, a region has the sum of its classes' probabilities."""
    network, case = certain([0.4, 0.3, 0.2, 0.1]), a_case(tiny_brats)

    (record,) = measure_one(network, BRATS21_SMALL.service, case, [[1.0] * 4])

    assert [region.name for region in BRATS21.service.regions] == ["whole tumour", "tumour core", "enhancing tumour"]
    voxels, box = 12 * 12 * 12, 3 * 3 * 3
    assert [sum(row) / voxels for row in record.sum_p] == pytest.approx([0.4, 0.6, 0.4, 0.1], abs=1e-3)
    assert [sum(row) for row in record.sum_y] == [voxels - 3 * box, 3 * box, 2 * box, box]


def test_a_channel_on_another_grid_is_refused(
    tiny_brats: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A channel that was not brought onto the grid of the others is named before the first step."""
    flair = a_case(tiny_brats).images[3]
    write_nifti(flair, np.ones((12, 12, 11), np.int16))

    assert f"{flair} lies on another grid than" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_the_network_takes_the_channels_of_the_layout() -> None:
    """Four files of a case are the four channels of the network."""
    assert len(BRATS21.service.channels) == 4
    assert {recipe.service.network.arguments["in_channels"] for recipe in (BRATS21, BRATS21_SMALL)} == {4}
