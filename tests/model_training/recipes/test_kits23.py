from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from model_training.data.case import Case
from model_training.evaluation.evaluate import measure_one
from model_training.recipes.kits23 import KITS23, KITS23_SMALL
from service.bundle.schema import Window
from tests.model_training.recipes.contract import RecipeContract


class TestKits23(RecipeContract):
    """The paper's recipe and its small variant."""

    name = "kits23"
    data_set = "tiny_kits"
    structures: ClassVar[list[str]] = ["kidney and masses", "masses", "tumour"]
    unknown_label = 4


def a_case(data: Path) -> Case:
    """Return a case that is trained on."""
    return KITS23.cases(data)["fold1"][0]


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


def test_structures_have_codes() -> None:
    """The codes are of SNOMED CT."""
    labels = KITS23.service.labels

    assert [label.value for label in labels] == [0, 1, 2, 3]
    assert {label.name: label.code.value for label in labels if label.code} == {
        "kidney": "64033007",
        "tumour": "108369006",
        "cyst": "367643001",
    }


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The notice has what CC BY-NC-SA requires: licence, address, source and changes."""
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
    """With class probabilities of 0.4, 0.3, 0.2 and 0.1 everywhere, a region has the sum of its classes' probabilities."""
    network, case = certain([0.4, 0.3, 0.2, 0.1]), a_case(tiny_kits)

    (record,) = measure_one(network, KITS23_SMALL.service, case, [[1.0] * 4])

    assert [region.name for region in KITS23.service.regions] == ["kidney and masses", "masses", "tumour"]
    voxels, box = 12 * 12 * 12, 3 * 3 * 3
    assert [sum(row) / voxels for row in record.sum_p] == pytest.approx([0.4, 0.6, 0.3, 0.2], abs=1e-3)
    assert [sum(row) for row in record.sum_y] == [voxels - 3 * box, 3 * box, 2 * box, box]
