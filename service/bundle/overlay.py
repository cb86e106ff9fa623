"""Measurements of a bundle made on this machine, kept in the state directory because a bundle itself never changes.

Path: measurements/<sha256 of the bundle>/<engine>-<precision>.json
"""

import datetime as dt
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from service.bundle.card import Measurement
from service.bundle.description import BundleDescription
from service.bundle.engine_kind import ENGINE_KINDS, EngineKind
from service.bundle.schema import Declaration
from service.errors import BundleInvalid

FOLDER: Final = "measurements"


class Overlay(Declaration):
    """A measurement in addition to those of the card."""

    schema_version: Literal["1.0"] = "1.0"
    bundle: str
    """Identity of the bundle that was measured."""
    date: dt.date
    measurement: Measurement


def write_overlay(state: Path, bundle: BundleDescription, measurement: Measurement) -> Path:
    """Store a measurement in a state directory, replacing one of the same engine and precision; return its file."""
    file = _file(state, bundle, EngineKind(measurement.engine, measurement.precision))
    file.parent.mkdir(parents=True, exist_ok=True)
    overlay = Overlay(bundle=bundle.identity, date=dt.datetime.now(dt.UTC).date(), measurement=measurement)
    part = file.with_suffix(".part")
    part.write_text(overlay.model_dump_json() + "\n")
    part.replace(file)
    return file


def measurements_of(bundle: BundleDescription, state: Path | None) -> dict[EngineKind, Measurement]:
    """Return the card's measurements and, for engine kinds that it lacks, those of a state directory.

    Raises:
        BundleInvalid: a file in the state directory is damaged or belongs to another bundle.
    """
    of_card = {
        EngineKind(measurement.engine, measurement.precision): measurement for measurement in bundle.card.measurements
    }
    if state is None:
        return of_card
    files = {
        engine_kind: _file(state, bundle, engine_kind)
        for engine_kind in ENGINE_KINDS.values()
        if engine_kind not in of_card
    }
    return of_card | {
        engine_kind: _read(file, bundle, engine_kind) for engine_kind, file in files.items() if file.is_file()
    }


def _read(file: Path, bundle: BundleDescription, engine_kind: EngineKind) -> Measurement:
    try:
        overlay = Overlay.model_validate_json(file.read_bytes())
    except ValidationError as error:
        msg = f"{FOLDER}/{file.parent.name}/{file.name} of the state directory is damaged. Remove it, or measure again: calibrant verify-engine."
        raise BundleInvalid(msg) from error
    measured = overlay.measurement
    if (overlay.bundle, measured.engine, measured.precision) != (bundle.identity, *engine_kind):
        msg = f"{FOLDER}/{file.parent.name}/{file.name} of the state directory belongs to another bundle or engine. Remove it."
        raise BundleInvalid(msg)
    return measured


def _file(state: Path, bundle: BundleDescription, engine_kind: EngineKind) -> Path:
    return state / FOLDER / bundle.sha256 / f"{engine_kind.name}.json"
