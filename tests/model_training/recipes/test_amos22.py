from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure
from model_training.recipes import RECIPES
from model_training.recipes.amos22 import AMOS22, AMOS22_SMALL
from service.bundle.schema import Window

Train = Callable[[Recipe, Path], torch.nn.Module]
Shrink = Callable[[Recipe], Recipe]
Refused = Callable[[Recipe, Path], str]
WriteNifti = Callable[..., None]


def quiet(_: Case) -> None:
    """Ignore the progress."""


def a_case(data: Path) -> Case:
    """Return a case that is trained on."""
    return AMOS22.cases(data)["fold1"][0]


def test_the_recipes_are_found_by_their_names() -> None:
    """The command line knows both, each bundle by the name of its recipe."""
    assert RECIPES["amos22"] is AMOS22
    assert RECIPES["amos22-small"] is AMOS22_SMALL
    assert [AMOS22.service.name, AMOS22_SMALL.service.name] == ["amos22", "amos22-small"]


def test_it_trains_as_the_paper_does() -> None:
    """Voxels, intensities, patch, learning rate and steps are those of arXiv 2506.03942."""
    service, schedule = AMOS22.service, AMOS22.schedule

    assert service.spacing_mm == (1.0, 1.0, 5.0)
    assert service.intensity == [Window(low=-100, high=200)]
    assert service.patch_size == (176, 176, 64)
    assert schedule.steps == 600 * 90
    assert (schedule.warmup_steps, schedule.warmup_from) == (2 * 90, 0.5)
    assert (schedule.batch_size, schedule.learning_rate, schedule.weight_decay) == (2, 2e-4, 1e-5)
    assert schedule.validate_every == 10 * 90


@pytest.mark.parametrize("recipe", [AMOS22, AMOS22_SMALL], ids=["paper", "small"])
def test_it_trains_and_evaluates(recipe: Recipe, tiny_amos: Path, shrunk: Shrink, two_steps: Train) -> None:
    """Two steps on small patches of the genuine layout, then a measurement of every structure on the test set."""
    small = shrunk(recipe)

    network = two_steps(small, tiny_amos)
    measurement = measure(network, small.service, small.cases(tiny_amos)["test"], quiet)

    assert list(measurement.class_scores) == [
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "oesophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "pancreas",
        "right adrenal gland",
        "left adrenal gland",
        "duodenum",
        "bladder",
        "prostate or uterus",
    ]
    assert [case.case for case in measurement.cases] == ["amos_0300", "amos_0500"]
    voxels = 12 * 12 * 12
    assert all(sum(row) == voxels for case in measurement.cases for row in case.count)


def test_an_unknown_label_value_is_refused(
    tiny_amos: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A value that the recipe does not know is named with its file before the first step."""
    label = a_case(tiny_amos).label
    image = nib.Nifti1Image.from_filename(label)
    write_nifti(label, np.where(image.dataobj == np.uint8(1), 16, image.dataobj).astype(np.uint8), image.affine)

    assert f"{label} holds the values [16]; the recipe knows" in refused(shrunk(AMOS22_SMALL), tiny_amos)


def test_a_label_on_another_grid_is_refused(
    tiny_amos: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A label whose header puts it elsewhere is named before the first step."""
    label = a_case(tiny_amos).label
    image = nib.Nifti1Image.from_filename(label)
    moved = image.affine.copy()
    moved[0, 3] += 1.0
    write_nifti(label, np.asarray(image.dataobj), moved)

    assert f"{label} lies on another grid than" in refused(shrunk(AMOS22_SMALL), tiny_amos)


def test_a_missing_label_is_refused(tiny_amos: Path, shrunk: Shrink, refused: Refused) -> None:
    """A label that is not there is named before the first step."""
    label = a_case(tiny_amos).label
    label.unlink()

    assert f"{label} was not found" in refused(shrunk(AMOS22_SMALL), tiny_amos)


def test_a_damaged_scan_is_refused(tiny_amos: Path, shrunk: Shrink, refused: Refused) -> None:
    """A scan whose end is missing is named before the first step."""
    scan = a_case(tiny_amos).images[-1]
    scan.write_bytes(scan.read_bytes()[:-20])

    assert f"{scan} cannot be read. The gzip stream is cut short" in refused(shrunk(AMOS22_SMALL), tiny_amos)


def test_structures_have_colours_of_their_own() -> None:
    """No two labels share a colour, and the codes are of SNOMED CT."""
    labels = AMOS22.service.labels

    assert [label.value for label in labels] == list(range(16))
    assert len({label.color for label in labels}) == len(labels)
    assert {label.name: label.code.value for label in labels if label.code} == {
        "spleen": "78961009",
        "right kidney": "64033007",
        "left kidney": "64033007",
        "gallbladder": "28231008",
        "oesophagus": "32849002",
        "liver": "10200004",
        "stomach": "69695003",
        "aorta": "15825003",
        "inferior vena cava": "64131007",
        "pancreas": "15776009",
        "right adrenal gland": "23451007",
        "left adrenal gland": "23451007",
        "duodenum": "38848004",
        "bladder": "89837001",
    }


def test_the_population_counts_persons_and_cases() -> None:
    """The card says of whom it speaks, and that they were held out."""
    population = AMOS22.population([Case(name, name, (Path(name),), Path(name)) for name in "AB"])

    assert (population.n_persons, population.n_cases, population.protocol) == (2, 2, "held-out")


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The licence file says that the terms of AMOS apply, whose sources differ."""
    notice = AMOS22.licence_notice

    for words in ("The terms of the data set apply", "arXiv:2206.08023"):
        assert words in notice


def test_paired_organs_say_their_side() -> None:
    """Kidneys and adrenal glands carry one code each and a modifier that tells right from left."""
    sides = {label.name: label.modifiers[0].meaning for label in AMOS22.service.labels if label.modifiers}

    assert sides == {
        "right kidney": "Right",
        "left kidney": "Left",
        "right adrenal gland": "Right",
        "left adrenal gland": "Left",
    }
