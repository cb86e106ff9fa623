import pytest

from service.names import parts_of


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sub-01_T1w.nii.gz", {"suffix": "T1w"}),
        ("sub-01_ses-a_run-2_FLAIR.nii", {"suffix": "FLAIR"}),
        ("/data/anat/sub-01_ce-gadolinium_T1w.nii.gz", {"suffix": "T1w", "ce": "gadolinium"}),
        ("C:\\data\\sub-01_bold.nii.gz", {"suffix": "bold"}),
        ("sub-01_ce-gad_smith.nii.gz", {"ce": "gad"}),
        ("sub-01_smith.nii.gz", {}),
        ("smith_T2w.nii.gz", {}),
        ("sub-01_T1w", {}),
        ("", {}),
    ],
)
def test_only_what_bids_defines_is_taken_from_a_name(name: str, parts: dict[str, str]) -> None:
    """Suffix and contrast agent of a BIDS name; a suffix that BIDS does not know may be anything, and says nothing."""
    assert parts_of(name) == parts
