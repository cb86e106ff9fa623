from pathlib import Path

import pytest

from service.client.files import Files, stem_of


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii.gz", "a"), ("a.b.NII", "a.b"), ("a.nrrd", "a"), ("a.mha", "a"), ("a.zip", "a"), ("a.txt", "a.txt")],
)
def test_the_stem_is_the_name_without_a_known_ending(name: str, stem: str) -> None:
    """The extension of every readable format is removed, whatever its case; others stay."""
    assert stem_of(Path("folder.nii") / name) == stem


def test_names_are_those_of_bids_derivatives() -> None:
    """The suffixes are dseg and probseg, with desc-confidence for the confidence."""
    files = Files(Path("out"), "sub-1")

    assert [path.name for path in (files.mask, files.confidence, files.summary)] == [
        "sub-1_dseg.nii.gz",
        "sub-1_desc-confidence_probseg.nii.gz",
        "sub-1_summary.json",
    ]
    assert files.mask.parent == Path("out")
