"""What of a result has arrived at a PACS, object by object, in one file that is replaced whole."""

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
"""File of the report, if there is one."""


class Entry(BaseModel):
    """One object; `service.pacs.schemas.DeliveredObject` is what a caller sees of it."""

    model_config = ConfigDict(extra="forbid")

    uid: str
    study: str
    series: str
    file: str
    """Name in the folder `objects`."""
    content: str
    """`service.pacs.instance.content_digest` of it."""
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
    """Times that dead letters were tried again."""

    @classmethod
    def of(cls, owner: str, destination: str, files: Iterable[Path]) -> "Ledger":
        """Return the ledger of objects of which none has been sent."""
        entries = []
        for path in files:
            content = path.read_bytes()
            found = read_instance(content)
            entries.append(
                Entry(
                    uid=found.uid,
                    study=found.study,
                    series=found.series,
                    file=path.name,
                    content=content_digest(content),
                )
            )
        return cls(owner=owner, destination=destination, entries=entries)

    @classmethod
    def read(cls, folder: Path) -> "Ledger | None":
        """Return the ledger of a job's folder; None before there is one."""
        path = folder / LEDGER
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Replace the file."""
        draft = folder / f".{LEDGER}"
        write_durably(draft, self.model_dump_json(indent=1).encode())
        draft.rename(folder / LEDGER)
        sync_folder(folder)

    @property
    def pending(self) -> list[Entry]:
        """What is still to be sent."""
        return [entry for entry in self.entries if entry.state == "pending"]

    @property
    def dead(self) -> list[Entry]:
        """What was given up."""
        return [entry for entry in self.entries if entry.state == "dead"]

    @property
    def report(self) -> Superseded | None:
        """The report by which a later result names this one; None if it was not made or was given up."""
        found = next((entry for entry in self.entries if entry.file == REPORT and entry.state != "dead"), None)
        return Superseded(series_instance_uid=found.series, sop_instance_uid=found.uid) if found else None

    def revive(self) -> None:
        """Let everything that was given up be sent again."""
        for entry in self.dead:
            entry.state, entry.attempts = "pending", 0
        self.retries += 1
