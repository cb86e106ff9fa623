"""Cases on disk: where image and label of each lie, whose they are, and how they are read for training."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.bundle.schema import ServiceConfig
from service.errors import CalibrantError
from service.pipeline.decode import decode_scan
from service.pipeline.preprocess import labels_to_network_grid, preprocess
from service.volume import Volume


class DataError(CalibrantError):
    """The data set is not as the recipe expects; the message names the file and the fix."""

    code = "data-error"
    status = 422
    title = "The data cannot be used"


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled image and the person whom it shows."""

    name: str
    person: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A case on the network's grid: image (C, D, H, W) float32 and class indices (1, D, H, W) uint8."""

    case: Case
    image: torch.Tensor
    label: torch.Tensor


def read_msd_splits(root: Path) -> dict[str, list[Case]]:
    """Return the cases of a Medical Segmentation Decathlon folder by the splits of its ``splits.json``.

    Keys: ``fold1`` .. ``foldN`` and ``test``. Splits are by person (``persons.json``).

    Raises:
        DataError: a file is missing, or a person stands in two splits.
    """
    try:
        splits = json.loads((root / "splits.json").read_bytes())
        persons = json.loads((root / "persons.json").read_bytes())
        person_of = {name: person for person, names in persons.items() for name in names}
        names_of = {f"fold{k}": names for k, names in enumerate(splits["folds"], start=1)} | {"test": splits["test"]}
    except OSError as error:
        msg = f"{error.filename} was not found: expected splits.json (folds, test) and persons.json beside imagesTr and labelsTr."
        raise DataError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"splits.json or persons.json in {root} cannot be used ({error!r}): expected {{folds: [[case]], test: [case]}} and {{person: [case]}}."
        raise DataError(msg) from error
    cases = {split: [_msd_case(root, name, person_of) for name in names] for split, names in names_of.items()}
    _reject_shared_persons(cases)
    return cases


def read_labels(case: Case, config: ServiceConfig) -> tuple[Volume, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return the label file of a case and its class indices, (D, H, W) uint8 on the file's grid.

    Raises:
        DataError: a value that no label of the recipe has.
    """
    volume = decode_scan(case.label)
    values = np.array([label.value for label in config.labels])
    found = np.unique(volume.array_CDHW)
    if unknown := sorted(set(found.tolist()) - set(values.tolist())):
        msg = f"{case.label} holds the values {unknown}; the recipe knows {values.tolist()}. Map them, or fix the recipe's labels."
        raise DataError(msg)
    order = np.argsort(values)
    return volume, order[np.searchsorted(values[order], volume.array_CDHW[0])].astype(np.uint8)


def load_sample(case: Case, config: ServiceConfig) -> Sample:
    """Return the case on the network's grid, preprocessed exactly as serving does.

    Raises:
        DataError: image and label lie on different grids, or a label value is unknown.
        ScanError: a file cannot be read.
    """
    scan = decode_scan(case.image)
    labels, classes = read_labels(case, config)
    if scan.shape != labels.shape or not np.allclose(scan.affine, labels.affine, atol=1e-3):
        msg = f"{case.label} lies on another grid than {case.image}: {labels.shape} and {scan.shape} voxels. Resample the label to the image."
        raise DataError(msg)
    image, grid = preprocess(scan, config)
    return Sample(case, image, labels_to_network_grid(classes, grid))


def _msd_case(root: Path, name: str, person_of: dict[str, str]) -> Case:
    case = Case(
        name, person_of.get(name, ""), root / "imagesTr" / f"{name}.nii.gz", root / "labelsTr" / f"{name}.nii.gz"
    )
    if not case.person:
        msg = f"{root / 'persons.json'} does not say whose scan {name} is: add it, so that no person is split."
        raise DataError(msg)
    for path in (case.image, case.label):
        if not path.is_file():
            msg = f"{path} was not found, though splits.json lists {name}: restore the file or take the case out of the split."
            raise DataError(msg)
    return case


def _reject_shared_persons(cases: dict[str, list[Case]]) -> None:
    split_of: dict[str, str] = {}
    for split, members in cases.items():
        for case in members:
            if split_of.setdefault(case.person, split) != split:
                msg = f"Person {case.person} is in {split_of[case.person]} and in {split}: keep all scans of a person in one split."
                raise DataError(msg)
