import re
from pathlib import Path

import pytest
from pydicom.sr.codedict import codes

from service.bundle.schema import Code, Label
from service.result.dicom.codes import DESIGNATOR, PRIVATE, SCHEME, category_of, modifiers_of, procedure_of, type_of

DOCUMENT = Path(__file__).parents[4] / "docs" / "dicom.md"


def label(code: Code | None, *modifiers: Code) -> Label:
    """Return a label of a code."""
    return Label(value=1, name="it", color=(0, 0, 0), code=code, modifiers=list(modifiers))


def test_the_document_lists_every_private_code() -> None:
    """Values and meanings agree, in the same order; the table is frozen."""
    table = re.findall(r"^\| (C\d\d) \| ([^|]+?) \|", DOCUMENT.read_text(), re.MULTILINE)

    assert table == [(code.value, code.meaning) for code in PRIVATE]
    assert len({code.value for code in PRIVATE}) == len(PRIVATE) == 23


def test_private_codes_have_a_private_designator() -> None:
    """It begins with 99 (PS3.16 section 8.2), and objects identify its owner."""
    assert {code.scheme_designator for code in PRIVATE} == {DESIGNATOR}
    assert DESIGNATOR.startswith("99")
    assert SCHEME.CodingSchemeDesignator == DESIGNATOR
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in PRIVATE)


def test_a_code_has_a_meaning_of_the_standard() -> None:
    """A bundle's meaning is used if the dictionary knows it, otherwise the dictionary's."""
    hippocampus = Code(value="5366008", meaning="Hippocampus")
    assert type_of(label(hippocampus)).meaning == codes.SCT.Hippocampus.meaning == "Hippocampus"
    assert type_of(label(Code(value="5366008", meaning="sea horse"))).meaning != "sea horse"
    unknown = type_of(label(Code(value="1", scheme="99X", meaning="new")))
    assert (unknown.value, unknown.scheme_designator, unknown.meaning) == ("1", "99X", "new")


@pytest.mark.parametrize(
    ("value", "category"),
    [
        ("5366008", codes.cid7150.AnatomicalStructure),
        ("108369006", codes.cid7150.MorphologicallyAbnormalStructure),
        ("79654002", codes.cid7150.MorphologicallyAbnormalStructure),
        (None, codes.cid7150.Tissue),
    ],
)
def test_lesions_have_a_category_of_their_own(value: str | None, category: object) -> None:
    """Neoplasm and edema are in CID 7159; a label without a code is tissue."""
    assert category_of(label(None if value is None else Code(value=value, meaning="it"))) == category


def test_laterality_is_separated_from_other_modifiers() -> None:
    """Left is a laterality (CID 244); anterior is not."""
    left, anterior = Code(value="7771000", meaning="Left"), Code(value="255549009", meaning="Anterior")

    assert modifiers_of(label(None, anterior, left)) == (codes.SCT.Left, [codes.SCT.Anterior])
    assert modifiers_of(label(None, anterior)) == (None, [codes.SCT.Anterior])


def test_the_procedure_follows_from_the_modality() -> None:
    """CID 100 has a code for each modality that is segmented and one for all others."""
    assert procedure_of("CT").meaning == "CT unspecified body region"
    assert procedure_of("OT") == codes.cid100.ImagingProcedure
