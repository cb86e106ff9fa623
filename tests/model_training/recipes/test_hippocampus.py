import json
from pathlib import Path

import pytest
import torch

from model_training.data.case import Case
from model_training.recipes import RECIPES
from model_training.recipes.hippocampus import HIPPOCAMPUS, _person
from service.bundle.acceptance import judge_words
from service.bundle.network import build_network

SERVICE = HIPPOCAMPUS.service


def test_the_recipe_is_found_by_its_name() -> None:
    """The command line knows it as "hippocampus"."""
    assert RECIPES["hippocampus"] is HIPPOCAMPUS


def test_the_network_has_one_output_per_label() -> None:
    """One window in gives logits of the same size for background, anterior and posterior hippocampus."""
    network = build_network(SERVICE.network).eval()

    with torch.inference_mode():
        logits = network(torch.zeros(1, len(SERVICE.channels), *SERVICE.patch_size))

    assert logits.shape == (1, 3, 48, 64, 48)
    assert [label.value for label in SERVICE.labels] == [0, 1, 2]


@pytest.mark.parametrize(
    ("case", "person"),
    [
        ("hippocampus_041", "head_021"),
        ("hippocampus_042", "head_021"),
        ("hippocampus_043", "head_022"),
        ("hippocampus_001", "head_001"),
    ],
)
def test_two_cases_in_a_row_are_of_one_person(case: str, person: str) -> None:
    """An odd number and the even one after it are the two sides of one head."""
    assert _person(case) == person


def test_the_rule_agrees_with_the_listed_persons(real_hippocampus: Path) -> None:
    """The rule groups the cases as persons.json of the real data does."""
    listed = json.loads((real_hippocampus / "persons.json").read_bytes())

    assert len(listed) > 100
    by_rule = [{_person(case) for case in cases} for cases in listed.values()]
    assert all(len(persons) == 1 for persons in by_rule)
    assert len(set.union(*by_rule)) == len(listed)


def test_structures_carry_codes_and_colours_of_their_own() -> None:
    """Each structure is a coded part of the hippocampus in a colour that no other has."""
    structures = SERVICE.labels[1:]

    assert [label.code.value for label in structures if label.code] == ["5366008", "5366008"]
    assert [label.modifiers[0].meaning for label in structures] == ["Anterior", "Posterior"]
    assert [label.name.split()[0] for label in structures] == ["anterior", "posterior"]
    assert len({label.color for label in SERVICE.labels}) == 3


def test_the_card_is_measured_on_persons_who_were_not_trained_on() -> None:
    """The card is measured on fold 5, which is neither trained on nor the test set."""
    assert HIPPOCAMPUS.train_splits == ("fold1", "fold2", "fold3", "fold4")
    assert HIPPOCAMPUS.validation_split == "fold5"


def test_the_calibration_loss_takes_part_in_training() -> None:
    """mL1-ACE joins before training ends, with a positive weight."""
    assert 0 <= HIPPOCAMPUS.ace_after < HIPPOCAMPUS.schedule.steps
    assert HIPPOCAMPUS.ace_weight > 0


def test_the_population_counts_persons_and_cases() -> None:
    """Three scans of two persons are two persons; the protocol and its unit are stated."""
    cases = [Case(name, person, (Path(name),), Path(name)) for name, person in (("1", "A"), ("2", "A"), ("3", "B"))]

    population = HIPPOCAMPUS.population(cases)

    assert (population.n_persons, population.n_cases) == (2, 3)
    assert (population.protocol, population.split_unit) == ("held-out", "person")
    assert population.licence == "CC BY-SA 4.0"


def test_the_weights_keep_the_licence_of_the_data() -> None:
    """The notice has what CC BY-SA requires: licence, address, source and changes."""
    notice = HIPPOCAMPUS.licence_notice

    for words in ("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/", "Medical Segmentation Decathlon"):
        assert words in notice
    assert "Changes:" in notice


SAID: dict[str, tuple[str, ...]] = {
    "Modality": ("MR",),
    "BodyPartExamined": ("BRAIN",),
    "ImageType": ("ORIGINAL", "PRIMARY", "M", "ND", "NORM"),
    "ScanningSequence": ("GR", "IR"),
    "SequenceName": ("*tfl3d1_16ns",),
    "SeriesDescription": ("t1_mprage_sag_p2_iso",),
    "EchoTime": ("2.98",),
    "InversionTime": ("900",),
    "SliceThickness": ("1",),
    "suffix": ("T1w",),
}
"""A usual T1-weighted head."""


@pytest.mark.parametrize("description", ["T1w_MPR1_GDC", "t1_mprage_sag", "3D T1 FSPGR", "BRAVO"])
def test_usual_descriptions_of_t1_are_accepted(description: str) -> None:
    """GDC is a correction of gradients, not gadolinium."""
    assert HIPPOCAMPUS.acceptance is not None

    assert judge_words(HIPPOCAMPUS.acceptance, SAID | {"SeriesDescription": (description,)}).refused == ()


def test_a_usual_t1_head_is_accepted() -> None:
    """Nothing speaks against it; what it does not say is listed."""
    assert HIPPOCAMPUS.acceptance is not None
    judgement = judge_words(HIPPOCAMPUS.acceptance, SAID)

    assert (judgement.refused, judgement.withdrawn) == ((), ())
    assert judgement.not_compared == ("AcquisitionContrast", "PulseSequenceName", "ContrastBolusAgent", "ce")


@pytest.mark.parametrize(
    "said",
    [
        {"Modality": ("CT",)},
        {"Modality": ("PT",)},
        {"BodyPartExamined": ("KNEE",)},
        {"BodyPartExamined": ("FOOT",)},
        {"ImageType": ("DERIVED", "PRIMARY", "PROJECTION IMAGE")},
        {"ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
        {"AcquisitionContrast": ("FLUID_ATTENUATED",)},
        {"ScanningSequence": ("EP", "SE")},
        {"SequenceName": ("*spcir_278ns",)},
        {"SequenceName": ("FLAIR",)},
        {"SeriesDescription": ("Ax T2 TSE",)},
        {"SeriesDescription": ("sag t1 mprage +C",)},
        {"SeriesDescription": ("t1_vibe_gd_tra",)},
        {"EchoTime": ("97",)},
        {"InversionTime": ("2200",)},
        {"ContrastBolusAgent": ("Gadovist 7.5 ml",)},
        {"suffix": ("T2w",)},
        {"suffix": ("FLAIR",)},
        {"ce": ("gadolinium",)},
    ],
    ids=str,
)
def test_every_other_kind_of_scan_is_refused(said: dict[str, tuple[str, ...]]) -> None:
    """One word that says that it is something else is enough."""
    assert HIPPOCAMPUS.acceptance is not None

    assert len(judge_words(HIPPOCAMPUS.acceptance, SAID | said).refused) == 1


def test_the_page_lists_what_is_accepted() -> None:
    """docs/verdict.md repeats the declaration of the default model, line by line."""
    assert HIPPOCAMPUS.acceptance is not None
    page = (Path(__file__).parents[3] / "docs" / "verdict.md").read_text().splitlines()

    listed = [
        line.removeprefix("- ") for line in page if line.startswith("- ") and line[2:].partition(":")[0].isalnum()
    ]
    assert listed == list(HIPPOCAMPUS.acceptance.descriptions)
