"""KiTS 2023: ``dataset/case_XXXXX/{imaging,segmentation}.nii.gz``, as ``kits23_download_data`` writes them."""

from pathlib import Path

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout
from model_training.data.splits import split_cases

_SCAN, _LABEL = "imaging.nii.gz", "segmentation.nii.gz"


def read_kits(root: Path) -> dict[str, list[Case]]:
    """Return the cases by split. Each shows another person.

    Args:
        root: the clone of KiTS23's repository, with the cases in its folder ``dataset``.

    Raises:
        DataError: the layout is not KiTS23's, a file is missing, or splits.json is malformed.
    """
    cases = [
        Case(folder.name, folder.name, (folder / _SCAN,), folder / _LABEL)
        for folder in sorted(root.glob("dataset/case_*"))
    ]
    reject_other_layout(bool(cases), root, f"dataset/case_XXXXX/{_SCAN} and {_LABEL}")
    if not any(path.is_file() for case in cases for path in case.images):
        msg = f"{root} holds no scan (dataset/case_XXXXX/{_SCAN}): the repository brings the segmentations only. Run kits23_download_data there."
        raise DataError(msg)
    reject_missing(cases, "its folder")
    return split_cases(root, cases)
