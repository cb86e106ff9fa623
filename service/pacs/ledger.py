"""The ledger of a DICOM job: which objects of a result have arrived at a PACS, in one file that is replaced atomically."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from service.pacs.instance import content_digest, read_instance
from service.schemas import Problem, Superseded
from service.storage.durable import sync_folder, write_durably

LEDGER: Final = "ledger.json"
OBJECTS: Final = "objects"
REPORT: Final = "sr.dcm"
"""File name of the report."""


class Entry(BaseModel):
    """One object; callers see it as `service.pacs.schemas.DeliveredObject`."""

    model_config = ConfigDict(extra="forbid")

    uid: str
    study: str
    series: str
    file: str
    """File name in the folder `objects`."""
    content: str
    """Its `service.pacs.instance.content_digest`."""
    state: Literal["pending", "stored", "dead"] = "pending"
    attempts: int = 0
    problem: Problem | None = None


class Ledger(BaseModel):
    """The objects of one DICOM job."""

    model_config = ConfigDict(extra="forbid")

    owner: str
    destination: str
    entries: list[Entry]
    retries: int = 0
    """Number of times that dead letters were retried."""

    @classmethod
    def of(cls, owner: str, destination: str, files: Iterable[Path]) -> "Ledger":
        """Return the ledger of objects before any of them is sent."""
        entries = []
        for path in files:
            content = path.read_bytes()
            instance = read_instance(content)
            entries.append(
                Entry(
                    uid=instance.uid,
                    study=instance.study,
                    series=instance.series,
                    file=path.name,
                    content=content_digest(content),
                )
            )
        return cls(owner=owner, destination=destination, entries=entries)

    @classmethod
    def read(cls, folder: Path) -> "Ledger | None":
        """Return the ledger in a job's folder, None if it does not exist yet."""
        path = folder / LEDGER
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Replace the file durably."""
        draft = folder / f".{LEDGER}"
        write_durably(draft, self.model_dump_json(indent=1).encode())
        draft.rename(folder / LEDGER)
        sync_folder(folder)

    @property
    def pending(self) -> list[Entry]:
        """Objects that are still to be sent."""
        return [entry for entry in self.entries if entry.state == "pending"]

    @property
    def dead(self) -> list[Entry]:
        """Objects that were given up."""
        return [entry for entry in self.entries if entry.state == "dead"]

    @property
    def report(self) -> Superseded | None:
        """The report that a later result supersedes; None if there is none or it was given up."""
        report = next((entry for entry in self.entries if entry.file == REPORT and entry.state != "dead"), None)
        return Superseded(series_instance_uid=report.series, sop_instance_uid=report.uid) if report else None

    def revive(self) -> None:
        """Mark all objects that were given up as pending again."""
        for entry in self.dead:
            entry.state, entry.attempts = "pending", 0
        self.retries += 1
