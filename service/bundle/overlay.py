"""Measurements of a bundle made on this machine, kept in the state directory because a bundle itself never changes.

Path: measurements/<sha256 of the bundle>/<engine>-<precision>[-<kind of device>].json; without one it is the CPU.
"""

import datetime as dt
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from service.bundle.card import CPU, Measurement
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
    """Store a measurement in a state directory, replacing one of the same key; return its file."""
    file = _file(state, bundle, EngineKind(measurement.engine, measurement.precision), measurement.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    overlay = Overlay(bundle=bundle.identity, date=dt.datetime.now(dt.UTC).date(), measurement=measurement)
    part = file.with_suffix(".part")
    part.write_text(overlay.model_dump_json() + "\n")
    part.replace(file)
    return file


def measurements_of(bundle: BundleDescription, state: Path | None, device: str = CPU) -> dict[EngineKind, Measurement]:
    """Return the card's measurements and, for engine kinds that it lacks, those of a state directory.

    Args:
        bundle: that was measured.
        state: the state directory; None for none.
        device: kind of device whose measurements are wanted.

    Raises:
        BundleInvalid: a file in the state directory is damaged or belongs to another bundle.
    """
    of_card = {
        EngineKind(measurement.engine, measurement.precision): measurement
        for measurement in bundle.card.measurements
        if measurement.device == device
    }
    if state is None:
        return of_card
    return of_card | {
        engine_kind: _read(file, bundle, engine_kind, device)
        for engine_kind in ENGINE_KINDS.values()
        if engine_kind not in of_card and (file := _file(state, bundle, engine_kind, device)).is_file()
    }


def _read(file: Path, bundle: BundleDescription, engine_kind: EngineKind, device: str) -> Measurement:
    try:
        overlay = Overlay.model_validate_json(file.read_bytes())
    except ValidationError as error:
        msg = f"{FOLDER}/{file.parent.name}/{file.name} of the state directory is damaged. Remove it, or measure again: calibrant verify-engine."
        raise BundleInvalid(msg) from error
    measured = overlay.measurement
    if (overlay.bundle, measured.engine, measured.precision, measured.device) != (
        bundle.identity,
        *engine_kind,
        device,
    ):
        msg = f"{FOLDER}/{file.parent.name}/{file.name} of the state directory belongs to another bundle, engine or device. Remove it."
        raise BundleInvalid(msg)
    return measured


def _file(state: Path, bundle: BundleDescription, engine_kind: EngineKind, device: str) -> Path:
    name = engine_kind.name if device == CPU else f"{engine_kind.name}-{device}"
    return state / FOLDER / bundle.sha256 / f"{name}.json"
