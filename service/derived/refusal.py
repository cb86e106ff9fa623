"""A refused series -> a short report for its study that says why, so that nobody waits for a result.

Runs in a process of its own (`service.executors.on_demand`), as all that reads DICOM headers of a caller.
"""

import datetime as dt
import hashlib
from pathlib import Path

import numpy as np

from service.bundle.card import CalibrationCard
from service.bundle.description import describe_bundle
from service.bundle.statement import statement_about
from service.intake.dicom.source import SourceSeries
from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import ModelIdentity, Outcome
from service.schemas import Statement, Summary


def write_refusal(source: str, folder: Path, bundle: Path, detail: str, created: dt.datetime) -> None:
    """Write the report as `sr.dcm`.

    Args:
        source: `SourceSeries` as JSON.
        folder: for the file.
        bundle: folder of the model that refused the series.
        detail: why, in sentences.
        created: date and time of the refusal.
    """
    description = describe_bundle(bundle)
    series = SourceSeries.model_validate_json(source)
    nothing = np.zeros((len(series.slices), series.rows, series.columns), np.uint8)
    outcome = Outcome(
        source=series,
        labels=[],
        mask_KRC=nothing,
        confidence_KRC=nothing,
        summary=Summary(
            model=description.identity,
            structures=[],
            foreground_confidence=None,
            statement=_refused(description.card, detail),
            warnings=[],
        ),
        model=ModelIdentity(
            description.config.name,
            description.config.version,
            description.identity.partition("@")[2],
            description.card.weights_sha256,
            description.card_sha256,
        ),
        created=created,
        content=hashlib.sha256(detail.encode()).hexdigest(),
    )
    write_objects(outcome, folder, ["sr"])


def _refused(card: CalibrationCard, detail: str) -> Statement:
    return statement_about(card).model_copy(
        update={
            "status": "withdrawn",
            "text": "Refused: the model is not made for this series, which was not segmented.",
            "reasons": [detail],
            "figures": None,
        }
    )
