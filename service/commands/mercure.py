"""`calibrant mercure`: a processing module of mercure, from a folder of DICOM files to a folder of results.

The contract (docs/modules.rst of mercure): MERCURE_IN_DIR holds images of one series or of a whole study, and
`task.json` with the settings of the module; MERCURE_OUT_DIR gets DICOM files and `result.json`; the exit code is 0.
The module computes everything itself, without a service. Mercure stores the module's output, so it names no patient.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bundle.acceptance import Admission
from service.commands.batch.case import BatchCase
from service.commands.batch.dicom import find_series, is_dicom
from service.commands.predict import installed, served_here
from service.errors import CalibrantError, SettingsError, SourceError, from_code
from service.schemas import DEFAULT_OBJECTS, RESEARCH_USE_ONLY, Accept, DicomObject, Summary

if TYPE_CHECKING:
    from service.bundle.reader import LoadedBundle

TASK: Final = "task.json"
RESULT: Final = "result.json"
"""Mercure stores this file, and sends the text of `__mercure_notification`."""


class ModuleSettings(BaseModel):
    """The module's settings: JSON on mercure's page of the module, or of a rule."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str | None = None
    """Name, or name@sha256; the default model if left out."""
    objects: list[DicomObject] = Field(default=list(DEFAULT_OBJECTS), min_length=1)
    """Objects to write for each series."""
    accept: Accept = "stated"
    """`anyway`: also series that say that the model is not made for them; their results are withdrawn."""


@dataclass(slots=True)
class Report:
    """Outcome of a task, once all of its series were tried."""

    model: str
    segmented: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        lines = [
            f"{self.model.partition('@')[0]}: {len(self.segmented)} series segmented, {len(self.refused)} refused."
        ]
        statements = [series["summary"]["statement"] for series in self.segmented]
        lines += [statement["text"] for statement in statements]
        lines += [series["detail"] for series in self.refused]
        withdrawn = any(statement["status"] == "withdrawn" for statement in statements)
        return {
            "model": self.model,
            "segmented": self.segmented,
            "refused": self.refused,
            "research_use_only": RESEARCH_USE_ONLY,
            "__mercure_notification": {
                "text": "\n".join([*lines, RESEARCH_USE_ONLY]),
                # For rules that notify on request: somebody should look at the results.
                "requested": withdrawn or bool(self.refused),
            },
        }


def run_module(inbox: Path, outbox: Path) -> Report:
    """Segment every series of images in a folder, and write DICOM objects and `result.json` to another.

    A study also holds series that the model is not made for, e.g. a localizer: the report lists them as refused, and the
    others are segmented.

    Args:
        inbox: MERCURE_IN_DIR.
        outbox: MERCURE_OUT_DIR.

    Raises:
        SettingsError: the settings of the module cannot be used.
        ModelNotFound: the model is not installed.
        SourceError: the folder holds no series of images.
        DeviceUnavailable: CALIBRANT_DEVICE is missing, or failed.
        CalibrantError: every series was refused; the first reason.
    """
    settings = read_settings(inbox)
    cases = find_series([path for path in sorted(inbox.iterdir()) if path.is_file() and is_dicom(path)]).cases
    if not cases:
        msg = "The folder holds no series of CT, MR or PET images. Let the rule send only such series."
        raise SourceError(msg)
    description = installed(settings.model)
    report = Report(description.identity)
    with served_here(description) as bundle:
        for case in cases:
            try:
                report.segmented.append(_segment(case, outbox, bundle, settings))
            except CalibrantError as error:
                report.refused.append({"images": len(case.files), "code": error.code, "detail": error.detail})
    (outbox / RESULT).write_text(json.dumps(report.document(), indent=2) + "\n")
    if not report.segmented:
        first = report.refused[0]
        raise from_code(first["code"], first["detail"])
    return report


def read_settings(inbox: Path) -> ModuleSettings:
    """Return the settings in `process.settings` of `task.json`, in which the rule's override the module's.

    Raises:
        SettingsError: they cannot be used.
    """
    try:
        task = json.loads((inbox / TASK).read_bytes())
        return ModuleSettings.model_validate(task["process"]["settings"] or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        details = error.errors() if isinstance(error, ValidationError) else []
        names = ", ".join(".".join(map(str, detail["loc"])) for detail in details)
        fault = f"{names} cannot be used" if names else "task.json has no settings of a processing module"
        msg = f'{fault}. Settings such as {{"model": "hippocampus-mr", "objects": ["seg", "sr", "sc"]}} are expected in the page of the module or of the rule.'
        raise SettingsError(msg) from error


def _segment(case: BatchCase, outbox: Path, bundle: "LoadedBundle", settings: ModuleSettings) -> dict[str, Any]:
    """Write the objects of a series under mercure's names, and return the report's entry about it."""
    from service.executors.on_demand import derive_dicom
    from service.intake.dicom.header import read_series_header
    from service.pipeline.run import run_case
    from service.result.files import SUMMARY

    with tempfile.TemporaryDirectory() as scratch, case.opened() as scan:
        result, made = Path(scratch) / "result", Path(scratch) / "objects"
        result.mkdir()
        made.mkdir()
        run_case(scan, bundle, result, lambda _stage, _done: None, admission=Admission(accept=settings.accept))
        files = []
        for path in derive_dicom(result, made, settings.objects):
            header = read_series_header(path)
            # Mercure's convention: the next module distinguishes the series by the first part of the name.
            name = f"{header.uid}#{path.stem}.dcm" if header else path.name
            (outbox / name).write_bytes(path.read_bytes())
            files.append(name)
        summary = Summary.model_validate_json((result / SUMMARY).read_bytes())
    return {"images": len(case.files), "files": files, "summary": summary.model_dump(mode="json")}
