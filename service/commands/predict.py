"""`calibrant predict`: segments one scan, on this machine or by a running service, into three files."""

import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.bundle.acceptance import Admission
from service.bundle.description import BundleDescription
from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.bundle.signature import read_public_keys
from service.bundle.trust import Trust
from service.client.files import Files, stem_of
from service.client.http import Client
from service.names import parts_of
from service.schemas import Accept, Summary
from service.settings import Settings

if TYPE_CHECKING:
    from service.bundle.reader import LoadedBundle

WIDTH: Final = 100
"""Columns of printed sentences."""

WITHDRAWN_BANNER: Final = "*** WITHDRAWN: do not use this mask or its volumes. The reasons are below. ***"
"""First line of a report on a withdrawn result."""

_LEAST_WIDTH = 24
"""Least columns for the names of structures."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The files of one segmented scan, named in the style of BIDS derivatives."""

    mask: Path
    confidence: Path
    summary: Path

    @classmethod
    def write(cls, scan: Path, out: Path, mask: bytes, confidence: bytes, summary: Summary) -> "Prediction":
        """Write the three files into the folder `out` and return their paths."""
        out.mkdir(parents=True, exist_ok=True)
        names = Files(out, stem_of(scan))
        files = cls(names.mask, names.confidence, names.summary)
        files.mask.write_bytes(mask)
        files.confidence.write_bytes(confidence)
        files.summary.write_text(summary.model_dump_json(indent=2) + "\n")
        return files

    def read_summary(self) -> Summary:
        """Return the image-level summary."""
        return Summary.model_validate_json(self.summary.read_bytes())

    @property
    def withdrawn(self) -> bool:
        """Whether the statement is withdrawn."""
        return self.read_summary().statement.status == "withdrawn"

    def report(self) -> str:
        """Return the text for the terminal: a banner if withdrawn, structures, statement and warnings, files."""
        summary = self.read_summary()
        width = max(_LEAST_WIDTH, *(len(structure.name) for structure in summary.structures))
        lines = [WITHDRAWN_BANNER, ""] if summary.statement.status == "withdrawn" else []
        lines += [f"{'structure':{width}} {'volume':>9} {'mean confidence':>16}"]
        for structure in summary.structures:
            confidence = "-" if structure.mean_confidence is None else f"{structure.mean_confidence:.3f}"
            lines.append(f"{structure.name:{width}} {structure.volume_text:>9} {confidence:>16}")
        lines += [
            "",
            *textwrap.wrap(summary.statement.text, WIDTH),
            *(line for reason in summary.statement.reasons for line in _indented(reason)),
        ]
        if summary.statement.not_compared:
            lines += textwrap.wrap(f"Not compared: {', '.join(summary.statement.not_compared)}.", WIDTH)
        for warning in summary.warnings:
            lines += textwrap.wrap(f"Warning: {warning}", WIDTH)
        lines += [summary.research_use_only, ""]
        return "\n".join([*lines, *(str(path) for path in (self.mask, self.confidence, self.summary))])


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def admission_of(scan: Path, accept: Accept) -> Admission:
    """Return what the command line and the name of a file say about a scan."""
    return Admission(tuple(sorted(parts_of(scan.name).items())), accept)


def predict_there(scan: Path, out: Path, model: str | None, url: str, accept: Accept = "stated") -> Prediction:
    """Let the service at `url` segment the scan, and write the files.

    Raises:
        ClientError: no server answered, or it refused the scan.
    """
    with Client(url) as client:
        result = client.segment(scan, model, accept=accept)
    return Prediction.write(scan, out, result.mask, result.confidence, result.summary)


def predict_here(scan: Path, out: Path, model: str | None, accept: Accept = "stated") -> Prediction:
    """Segment the scan in this process, and write the files.

    Raises:
        DeviceUnavailable: CALIBRANT_DEVICE is missing, or failed.
        InferenceOutOfMemory: the scan needs more memory than there is.
        CalibrantError: whatever else `service.pipeline.run.run_case` raises.
    """
    from service.pipeline.run import run_case
    from service.result.files import CONFIDENCE, MASK, SUMMARY

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with served_here(installed(model)) as bundle:
            run_case(scan, bundle, work, lambda _stage, _done: None, admission=admission_of(scan, accept))
        summary = Summary.model_validate_json((work / SUMMARY).read_bytes())
        return Prediction.write(scan, out, (work / MASK).read_bytes(), (work / CONFIDENCE).read_bytes(), summary)


@contextmanager
def served_here(description: BundleDescription) -> Iterator["LoadedBundle"]:
    """Yield a bundle on the first device of CALIBRANT_DEVICE, for cases that this process computes itself.

    Raises:
        DeviceUnavailable: the device is missing, or failed.
        InferenceOutOfMemory: a case needs more memory than there is.
        BundleError: as `service.engines.ready.ready_bundle`.
    """
    from service.engines.devices import claim, first_device
    from service.engines.ready import ready_bundle
    from service.executors.faults import explained
    from service.executors.memory import machine_memory_bytes

    settings = Settings.read()
    first = first_device(settings.device)
    device = claim(first)
    with explained(device, first.name, machine_memory_bytes()):
        yield ready_bundle(description.root, device, settings.engine, settings.state_dir)


def registry() -> Registry:
    """Return the bundles that are installed on this machine.

    Raises:
        SettingsError: CALIBRANT_BUNDLE_DIR is no folder, or CALIBRANT_BUNDLE_KEYS_FILE no list of keys.
    """
    settings = Settings.read()
    extra = settings.bundle_dir
    trust = Trust(settings.bundle_pins or {}, read_public_keys(settings.bundle_keys_file))
    return Registry.scan(SHIPPED, *([extra] if extra else []), trust=trust)


def installed(model: str | None) -> BundleDescription:
    """Return the bundle of a name or name@sha256; the default bundle for None.

    Raises:
        ModelNotFound: it is not installed on this machine.
        SettingsError: CALIBRANT_BUNDLE_DIR is no folder.
    """
    return registry().find(model or DEFAULT_MODEL)
