"""Files of a result -> a folder, durably; the result's own description comes last."""

import hashlib
from pathlib import Path

from service.schemas import CaseResult
from service.storage.durable import write_durably, write_flushed
from service.storage.local import RESULT


def write_files(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Write each file, for which `complete` flushes the folder, and return its SHA-256 by name."""
    for name, content in files.items():
        write_flushed(folder / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def complete(folder: Path, result: CaseResult) -> None:
    """Write `result.json` and flush the folder: from here on it holds a result."""
    write_durably(folder / RESULT, result.model_dump_json(indent=2).encode())
