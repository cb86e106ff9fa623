"""A small result of an oblique series."""

import datetime as dt
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from service.bundle.schema import Code, Label
from service.intake.dicom.series import decode
from service.intake.dicom.source import SourceSeries
from service.result.dicom.outcome import ModelIdentity, Outcome
from service.schemas import Statement, Structure, Summary
from service.volume import Volume
from tests.dicom_series import small_series, zip_of_series

LABELS = [
    Label(
        value=11,
        name="left hippocampus",
        color=(230, 159, 0),
        code=Code(value="5366008", meaning="Hippocampus"),
        modifiers=[Code(value="7771000", meaning="Left"), Code(value="255549009", meaning="Anterior")],
    ),
    Label(value=12, name="tumour", color=(86, 180, 233), code=Code(value="108369006", meaning="Neoplasm")),
    Label(value=21, name="something", color=(0, 158, 115)),
]


@pytest.fixture(name="affine")
def affine_(oblique: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return an oblique affine of voxels of 1 x 1.5 x 2 mm, RAS."""
    return oblique


@pytest.fixture(name="series")
def series_(affine: npt.NDArray[np.float64]) -> list[Dataset]:
    """Return an MR series of 12 x 10 x 8 voxels whose patient attributes are canaries."""
    return small_series(affine)


@pytest.fixture(name="volume")
def volume_(series: list[Dataset]) -> Volume:
    """Return the decoded series."""
    return decode(io.BytesIO(zip_of_series(series)))


@pytest.fixture(name="mask")
def mask_() -> npt.NDArray[np.uint8]:
    """Return label values on the volume's grid; planes 0, 1 and 7 are empty, and so is the third label."""
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2:6, 3:8, 2:5] = 11
    mask[6:9, 3:6, 3:7] = 12
    return mask


@pytest.fixture(name="outcome")
def outcome_(volume: Volume, mask: npt.NDArray[np.uint8]) -> Outcome:
    """Return a result on the series."""
    confidence = np.random.default_rng(6).integers(90, 256, mask.shape).astype(np.uint8)
    assert volume.source is not None
    return Outcome(
        source=SourceSeries.model_validate_json(volume.source),
        labels=LABELS,
        mask_KRC=mask.T,
        confidence_KRC=confidence.T,
        summary=summary_of(mask),
        model=ModelIdentity("tiny", "0.0.1", "b" * 64, "w" * 64, "c" * 64),
        created=dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
        content="f" * 64,
    )


def summary_of(mask: npt.NDArray[np.uint8]) -> Summary:
    """Return a summary of a mask of voxels of 3 mm3."""
    voxels = {label.value: int((mask == label.value).sum()) for label in LABELS}
    return Summary(
        model="tiny@" + "b" * 64,
        structures=[
            Structure(
                label=label.value,
                name=label.name,
                voxels=voxels[label.value],
                volume_ml=None if label.value == 12 else voxels[label.value] * 0.003,
                mean_confidence=0.875 if voxels[label.value] else None,
                p5_confidence=0.5 if voxels[label.value] else None,
                truncated=label.value == 12,
            )
            for label in LABELS
        ],
        foreground_confidence=0.75,
        statement=Statement(
            status="not compared",
            text="Nothing is known.",
            reasons=["It is too large."],
            p=0.25,
            n_compared=33,
            not_compared=["EchoTime", "Modality"],
            dataset="boxes",
            split="all",
            protocol="held-out",
            n_persons=2,
            n_cases=2,
            date=dt.date(2026, 1, 31),
            engine="torch",
            precision="fp32",
            figures=None,
        ),
        warnings=["2 files were left out."],
    )


@pytest.fixture(name="withdrawn")
def withdrawn_(outcome: Outcome) -> Outcome:
    """Return the same result, withdrawn."""
    summary = outcome.summary
    statement = summary.statement.model_copy(update={"status": "withdrawn"})
    structures = [structure.model_copy(update={"withdrawn": True}) for structure in summary.structures]
    return replace(
        outcome, summary=summary.model_copy(update={"statement": statement, "structures": structures}), content="e" * 64
    )


@pytest.fixture(name="changed")
def changed_(outcome: Outcome) -> Callable[..., Outcome]:
    """Return the function that changes fields of the outcome."""
    return lambda **fields: replace(outcome, **fields)
