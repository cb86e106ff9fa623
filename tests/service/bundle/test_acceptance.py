from pathlib import Path

import pytest
from pydantic import ValidationError

from service.bundle.acceptance import (
    MARGIN,
    SIZES,
    Acceptance,
    Admission,
    Limit,
    Words,
    judge_sizes,
    judge_words,
)
from service.bundle.card import CalibrationCard, ShiftReference
from service.bundle.description import describe_bundle
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.errors import ScanNotAccepted

ACCEPTANCE = Acceptance(
    words=(
        Words(name="Modality", accepted=("MR",)),
        Words(name="BodyPartExamined", accepted=("*HEAD*", "*BRAIN*"), unsaid=("UNKNOWN",)),
        Words(name="SeriesDescription", refused=("*FLAIR*",)),
        Words(name="ContrastBolusAgent", refused=("*",), unsaid=("NONE",)),
        Words(name="suffix", accepted=("T1W",)),
    ),
    limits=(Limit(name="EchoTime", unit="ms", low=0, high=30, otherwise="refused"),),
)

GOOD = {
    "Modality": ("MR",),
    "BodyPartExamined": ("BRAIN",),
    "SeriesDescription": ("t1_mprage",),
    "ContrastBolusAgent": ("none",),
    "suffix": ("T1w",),
    "EchoTime": ("2.9",),
}


def test_a_scan_that_says_what_is_expected_is_accepted() -> None:
    """Case, spaces and values that say nothing do not matter."""
    judgement = judge_words(ACCEPTANCE, GOOD | {"BodyPartExamined": (" head  first",)})

    assert (judgement.refused, judgement.withdrawn) == ((), ())
    assert judgement.not_compared == ("ContrastBolusAgent",)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"Modality": ("CT",)}, "Modality is CT; accepted: MR"),
        ({"BodyPartExamined": ("KNEE",)}, "BodyPartExamined is KNEE; accepted: HEAD, BRAIN"),
        ({"SeriesDescription": ("Ax FLAIR Smith",)}, "SeriesDescription contains FLAIR, which is refused"),
        ({"ContrastBolusAgent": ("Gadovist",)}, "ContrastBolusAgent has another value, which is refused"),
        ({"suffix": ("FLAIR",)}, "suffix is FLAIR; accepted: T1W"),
        ({"EchoTime": ("2.9", "120")}, "EchoTime is 120 ms; accepted: 0 to 30 ms"),
    ],
)
def test_a_scan_that_says_otherwise_is_refused(said: dict[str, tuple[str, ...]], reason: str) -> None:
    """The reason says what was found and what is accepted, but repeats no free text."""
    judgement = judge_words(ACCEPTANCE, GOOD | said)

    assert judgement.refused == (reason,)
    with pytest.raises(ScanNotAccepted, match="--accept anyway") as refused:
        judgement.reject(Admission())
    assert reason in refused.value.detail
    judgement.reject(Admission(accept="anyway"))
    assert judgement.reasons == (f"Not accepted: {reason}.",)


def test_what_a_scan_does_not_say_is_listed() -> None:
    """Silence refuses nothing: the names are listed, and so is a value that says nothing or is no number."""
    judgement = judge_words(ACCEPTANCE, {"BodyPartExamined": ("unknown",), "EchoTime": ("?",)})

    assert judgement.refused == ()
    assert judgement.not_compared == (
        *("Modality", "BodyPartExamined", "SeriesDescription", "ContrastBolusAgent", "suffix"),
        "EchoTime",
    )


def test_the_name_of_the_file_is_a_word_of_the_scan() -> None:
    """Parts of a BIDS name are judged beside what the file says."""
    stated = Admission(name=(("suffix", "T2w"),)).with_stated({"Modality": ("MR",)})

    assert judge_words(ACCEPTANCE, stated).refused == ("suffix is T2W; accepted: T1W",)


def test_a_code_that_may_be_free_text_is_not_repeated() -> None:
    """A body part that is longer than a code, or holds other characters, may be anything."""
    for value in ("JOHN DOE OF SPRINGFIELD", "O'NEIL"):
        (reason,) = judge_words(ACCEPTANCE, {"BodyPartExamined": (value,)}).refused
        assert reason == "BodyPartExamined has another value; accepted: HEAD, BRAIN"


@pytest.mark.parametrize(("value", "reasons"), [(40, 0), (60, 0), (32, 0), (75, 0), (31.9, 1), (75.1, 1)])
def test_sizes_may_leave_the_cases_range_by_the_margin(value: float, reasons: int) -> None:
    """A quarter beyond the range of the card's cases is the last that is accepted."""
    acceptance = Acceptance().with_sizes({"extent_mm_2": [50.0, 40.0, 60.0]})

    assert len(judge_sizes(acceptance, dict.fromkeys(SIZES, value))) == reasons
    assert acceptance.limits[0].low * MARGIN == 40


def test_a_size_that_is_no_number_is_a_reason() -> None:
    """NaN lies in no range."""
    acceptance = Acceptance().with_sizes({"extent_mm_2": [40.0, 60.0]})

    assert judge_sizes(acceptance, {"extent_mm_2": float("nan")}) == (
        "extent along axis 2 is nan mm; accepted: 32 to 75 mm.",
    )


def test_a_declared_limit_stands_before_the_cases_range() -> None:
    """The range of the cases fills in only what is not declared."""
    declared = Acceptance(limits=(Limit(name="spacing_mm_1", unit="mm", low=0.5, high=2),))
    acceptance = declared.with_sizes({"spacing_mm_1": [1.0], "spacing_mm_2": [1.0]})

    assert [(limit.name, limit.high) for limit in acceptance.limits] == [("spacing_mm_1", 2), ("spacing_mm_2", MARGIN)]


def test_what_cannot_be_compared_is_no_declaration() -> None:
    """A keyword that nobody reads, or an empty range, is an error of the bundle's author."""
    with pytest.raises(ValidationError, match="cannot be compared"):
        Words(name="PatientName", accepted=("*",))
    with pytest.raises(ValidationError, match="expected low below high"):
        Limit(name="EchoTime", unit="ms", low=2, high=1)


def test_descriptions_name_everything_that_is_compared() -> None:
    """One sentence for each attribute and size, in the card's own words."""
    assert ACCEPTANCE.descriptions[1] == "BodyPartExamined: HEAD, BRAIN accepted"
    assert ACCEPTANCE.descriptions[3] == "ContrastBolusAgent: any value refused"
    assert ACCEPTANCE.descriptions[-1] == "EchoTime: 0 to 30 ms"
    assert len(ACCEPTANCE.descriptions) == 6


@pytest.fixture
def card(tiny_bundle: Path) -> CalibrationCard:
    """Return a card of schema 1.0 with one shift reference."""
    reference = ShiftReference(feature="extent_mm_2", unit="mm", values=[50.0, 40.0, 60.0])
    return describe_bundle(tiny_bundle).card.model_copy(update={"shift_references": (reference,)})


def test_an_older_card_accepts_its_modality_and_the_sizes_of_its_cases(card: CalibrationCard) -> None:
    """What it does not declare follows from what it was measured on."""
    assert judge_words(card.accepted, {"Modality": ("CT",)}).refused
    assert judge_words(card.accepted, {"Modality": (card.population.modality,)}).refused == ()
    assert len(judge_sizes(card.accepted, {"extent_mm_2": 100})) == 1


def test_a_card_with_an_acceptance_is_of_schema_1_1(card: CalibrationCard) -> None:
    """It is written and read back; one of schema 1.0 has none."""
    declared = card.with_acceptance(ACCEPTANCE)

    assert declared.schema_version == "1.1"
    assert CalibrationCard.model_validate_json(declared.model_dump_json()) == declared
    assert declared.accepted.limits[-1].name == "extent_mm_2"
    assert '"acceptance"' not in card.model_dump_json()
    with pytest.raises(ValidationError, match=r"expected schema_version 1\.1"):
        CalibrationCard.model_validate(declared.model_dump() | {"schema_version": "1.0"})


def test_the_shipped_card_compares_modality_and_every_size() -> None:
    """Field of view and voxel size along each axis, and at least the modality."""
    accepted = describe_bundle(SHIPPED / DEFAULT_MODEL).card.accepted

    assert {limit.name for limit in accepted.limits} >= set(SIZES)
    assert "Modality" in {words.name for words in accepted.words}
