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
from model_training.recipes.kits23 import KITS23, KITS23_SMALL
from service.bundle.schema import Window

Train = Callable[[Recipe, Path], torch.nn.Module]
Shrink = Callable[[Recipe], Recipe]
Refused = Callable[[Recipe, Path], str]
WriteNifti = Callable[..., None]


def quiet(_: Case) -> None:
    """Ignore the progress."""


def a_case(data: Path) -> Case:
    """Return a case that is trained on."""
    return KITS23.cases(data)["fold1"][0]


def test_the_recipes_are_found_by_their_names() -> None:
    """The command line knows both, each bundle by the name of its recipe."""
    assert RECIPES["kits23"] is KITS23
    assert RECIPES["kits23-small"] is KITS23_SMALL
    assert [KITS23.service.name, KITS23_SMALL.service.name] == ["kits23", "kits23-small"]


def test_it_trains_as_the_paper_does() -> None:
    """Voxels, intensities, patch, learning rate and steps are those of arXiv 2506.03942."""
    service, schedule = KITS23.service, KITS23.schedule

    assert service.spacing_mm == (1.0, 1.0, 1.0)
    assert service.intensity == [Window(low=-54, high=242)]
    assert service.patch_size == (128, 128, 128)
    assert schedule.steps == 1250 * 176
    assert (schedule.warmup_steps, schedule.warmup_from) == (2 * 176, 0.5)
    assert (schedule.batch_size, schedule.learning_rate, schedule.weight_decay) == (2, 1e-4, 1e-5)
    assert schedule.validate_every == 10 * 176


@pytest.mark.parametrize("recipe", [KITS23, KITS23_SMALL], ids=["paper", "small"])
def test_it_trains_and_evaluates(recipe: Recipe, tiny_kits: Path, shrunk: Shrink, two_steps: Train) -> None:
    """Two steps on small patches of the genuine layout, then a measurement of every structure on the test set."""
    small = shrunk(recipe)

    network = two_steps(small, tiny_kits)
    measurement = measure(network, small.service, small.cases(tiny_kits)["test"], quiet)

    assert list(measurement.class_scores) == ["kidney and masses", "masses", "tumour"]
    assert [case.case for case in measurement.cases] == [case.name for case in KITS23.cases(tiny_kits)["test"]]
    voxels = 12 * 12 * 12
    assert all(sum(row) == voxels for case in measurement.cases for row in case.count)


def test_an_unknown_label_value_is_refused(
    tiny_kits: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A value that the recipe does not know is named with its file before the first step."""
    label = a_case(tiny_kits).label
    image = nib.Nifti1Image.from_filename(label)
    write_nifti(label, np.where(image.dataobj == np.uint8(1), 4, image.dataobj).astype(np.uint8), image.affine)

    assert f"{label} holds the values [4]; the recipe knows" in refused(shrunk(KITS23_SMALL), tiny_kits)


def test_a_label_on_another_grid_is_refused(
    tiny_kits: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A label whose header puts it elsewhere is named before the first step."""
    label = a_case(tiny_kits).label
    image = nib.Nifti1Image.from_filename(label)
    moved = image.affine.copy()
    moved[0, 3] += 1.0
    write_nifti(label, np.asarray(image.dataobj), moved)

    assert f"{label} lies on another grid than" in refused(shrunk(KITS23_SMALL), tiny_kits)


def test_a_missing_label_is_refused(tiny_kits: Path, shrunk: Shrink, refused: Refused) -> None:
    """A label that is not there is named before the first step."""
    label = a_case(tiny_kits).label
    label.unlink()

    assert f"{label} was not found" in refused(shrunk(KITS23_SMALL), tiny_kits)


def test_a_damaged_scan_is_refused(tiny_kits: Path, shrunk: Shrink, refused: Refused) -> None:
    """A scan whose end is missing is named before the first step."""
    scan = a_case(tiny_kits).images[-1]
    scan.write_bytes(scan.read_bytes()[:-20])

    assert f"{scan} cannot be read. The gzip stream is cut short" in refused(shrunk(KITS23_SMALL), tiny_kits)


def test_structures_have_colours_of_their_own() -> None:
    """No two labels share a colour, and the codes are of SNOMED CT."""
    labels = KITS23.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 3]
    assert len({label.color for label in labels}) == len(labels)
    assert {label.name: label.code.value for label in labels if label.code} == {
        "kidney": "64033007",
        "tumour": "108369006",
        "cyst": "367643001",
    }


def test_the_population_counts_persons_and_cases() -> None:
    """The card says of whom it speaks, and that they were held out."""
    population = KITS23.population([Case(name, name, (Path(name),), Path(name)) for name in "AB"])

    assert (population.n_persons, population.n_cases, population.protocol) == (2, 2, "held-out")


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The licence file says what CC BY-NC-SA asks for: licence, address, source, changes."""
    notice = KITS23.licence_notice

    for words in (
        "CC-BY-NC-SA-4.0",
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        "arXiv:2307.01984",
        "Changes:",
    ):
        assert words in notice


def test_a_region_is_as_probable_as_its_labels_together(
    tiny_kits: Path, certain: Callable[[Sequence[float]], torch.nn.Module]
) -> None:
    """Where the classes have 0.4, 0.3, 0.2 and 0.1 everywhere, a region has the sum of its classes' probabilities."""
    network, case = certain([0.4, 0.3, 0.2, 0.1]), a_case(tiny_kits)

    (record,) = measure_one(network, KITS23_SMALL.service, case, [[1.0] * 4])

    assert [region.name for region in KITS23.service.regions] == ["kidney and masses", "masses", "tumour"]
    voxels, box = 12 * 12 * 12, 3 * 3 * 3
    assert [sum(row) / voxels for row in record.sum_p] == pytest.approx([0.4, 0.6, 0.3, 0.2], abs=1e-3)
    assert [sum(row) for row in record.sum_y] == [voxels - 3 * box, 3 * box, 2 * box, box]
