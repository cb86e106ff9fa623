from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure_one
from model_training.recipes.brats21 import BRATS21, BRATS21_SMALL
from service.bundle.schema import ZScore
from tests.model_training.recipes.contract import RecipeContract

Shrink = Callable[[Recipe], Recipe]
Refused = Callable[[Recipe, Path], str]
WriteNifti = Callable[..., None]


class TestBrats21(RecipeContract):
    """The paper's recipe and its small variant."""

    name = "brats21"
    data_set = "tiny_brats"
    structures: ClassVar[list[str]] = ["whole tumour", "tumour core", "enhancing tumour"]
    unknown_label = 3


def a_case(data: Path) -> Case:
    """Return a case that is trained on."""
    return BRATS21.cases(data)["fold1"][0]


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


def test_structures_have_codes() -> None:
    """The codes are of SNOMED CT."""
    labels = BRATS21.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 4]
    assert {label.name: label.code.value for label in labels if label.code} == {
        "necrotic tumour core": "6574001",
        "oedema": "79654002",
    }


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The notice says that the terms accepted on Synapse apply."""
    notice = BRATS21.licence_notice

    for words in ("The terms of the data set apply", "Synapse", "arXiv:2107.02314"):
        assert words in notice


def test_a_region_is_as_probable_as_its_labels_together(
    tiny_brats: Path, certain: Callable[[Sequence[float]], torch.nn.Module]
) -> None:
    """With class probabilities of 0.4, 0.3, 0.2 and 0.1 everywhere, a region has the sum of its classes' probabilities."""
    network, case = certain([0.4, 0.3, 0.2, 0.1]), a_case(tiny_brats)

    (record,) = measure_one(network, BRATS21_SMALL.service, case, [[1.0] * 4])

    assert [region.name for region in BRATS21.service.regions] == ["whole tumour", "tumour core", "enhancing tumour"]
    voxels, box = 12 * 12 * 12, 3 * 3 * 3
    assert [sum(row) / voxels for row in record.sum_p] == pytest.approx([0.4, 0.6, 0.4, 0.1], abs=1e-3)
    assert [sum(row) for row in record.sum_y] == [voxels - 3 * box, 3 * box, 2 * box, box]


def test_a_channel_on_another_grid_is_refused(
    tiny_brats: Path, shrunk: Shrink, refused: Refused, write_nifti: WriteNifti
) -> None:
    """A channel on another grid than the others is reported before the first step."""
    flair = a_case(tiny_brats).images[3]
    write_nifti(flair, np.ones((12, 12, 11), np.int16))

    assert f"{flair} lies on another grid than" in refused(shrunk(BRATS21_SMALL), tiny_brats)


def test_the_network_takes_the_channels_of_the_layout() -> None:
    """The network has an input channel for each of the four files of a case."""
    assert len(BRATS21.service.channels) == 4
    assert {recipe.service.network.arguments["in_channels"] for recipe in (BRATS21, BRATS21_SMALL)} == {4}
