"""ACDC 2017: ``patientXXX/{Info.cfg, patientXXX_frameYY.nii.gz, patientXXX_frameYY_gt.nii.gz}``.

The patients are in ``training`` and, if present, ``testing``; both lie in the root or in ``database`` below it.
``Info.cfg`` names the frames of end diastole and end systole, e.g. ``ED: 1`` and ``ES: 12``.
"""

from pathlib import Path

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout
from model_training.data.splits import split_cases


def read_acdc(root: Path) -> dict[str, list[Case]]:
    """Return end diastole and end systole of every patient by split; both frames of a patient are in one split.

    Raises:
        DataError: the layout is not ACDC's, a file is missing, or a patient is in two splits.
    """
    top = root / "database" if (root / "database").is_dir() else root
    cases, test = _patients(top / "training"), _patients(top / "testing")
    reject_other_layout(bool(cases), root, "training/patientXXX/Info.cfg, in it or in database")
    reject_missing([*cases, *test], "Info.cfg")
    return split_cases(root, cases, test)


def _patients(folder: Path) -> list[Case]:
    return [case for info in sorted(folder.glob("patient*/Info.cfg")) for case in _frames(info)]


def _frames(info: Path) -> list[Case]:
    patient = info.parent.name
    facts = dict(line.partition(":")[::2] for line in info.read_text().splitlines())
    try:
        frames = {phase: int(facts[phase]) for phase in ("ED", "ES")}
    except (KeyError, ValueError) as error:
        msg = f"{info} names no frame of end diastole and end systole: expected the lines ED: N and ES: N."
        raise DataError(msg) from error
    stems = [info.parent / f"{patient}_frame{number:02d}" for number in frames.values()]
    return [
        Case(stem.name, patient, (stem.with_name(f"{stem.name}.nii.gz"),), stem.with_name(f"{stem.name}_gt.nii.gz"))
        for stem in stems
    ]
