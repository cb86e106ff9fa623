from typing import ClassVar

from model_training.recipes.amos22 import AMOS22
from service.bundle.schema import Window
from tests.model_training.recipes.contract import RecipeContract


class TestAmos22(RecipeContract):
    """The paper's recipe and its small variant."""

    name = "amos22"
    data_set = "tiny_amos"
    structures: ClassVar[list[str]] = [
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
    unknown_label = 16


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


def test_structures_have_codes() -> None:
    """The codes are of SNOMED CT."""
    labels = AMOS22.service.labels

    assert [label.value for label in labels] == list(range(16))
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


def test_the_weights_name_the_terms_of_the_data() -> None:
    """The notice says that AMOS's terms apply, and that its sources name different ones."""
    notice = AMOS22.licence_notice

    for words in ("The terms of the data set apply", "arXiv:2206.08023"):
        assert words in notice


def test_paired_organs_say_their_side() -> None:
    """Paired organs share a code and have a modifier for the side."""
    sides = {label.name: label.modifiers[0].meaning for label in AMOS22.service.labels if label.modifiers}

    assert sides == {
        "right kidney": "Right",
        "left kidney": "Left",
        "right adrenal gland": "Right",
        "left adrenal gland": "Left",
    }
