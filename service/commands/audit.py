"""`calibrant audit`: shows and checks the audit log of a state directory, also while a service writes it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import SettingsError
from service.storage.audit import entries, verify


def show_audit(root: Path, job: str | None) -> None:
    """Write the lines to stdout, one JSON object each.

    Raises:
        SettingsError: the directory has no log.
    """
    with _told(root):
        for line in entries(root, job):
            sys.stdout.write(json.dumps(line) + "\n")


def check_audit(root: Path, noted: str | None) -> str:
    """Return a sentence about a log that nobody has changed.

    Raises:
        AuditBroken: it was changed.
        SettingsError: the directory has no log, or what was noted is no number and hash.
    """
    number, _, digest = (noted or "").partition(":")
    if noted is not None and not number.isdigit():
        msg = "What was noted must be NUMBER:HASH, as an earlier `calibrant audit verify` showed it."
        raise SettingsError(msg)
    with _told(root):
        last, found = verify(root, None if noted is None else (int(number), digest))
    return f"{last} lines, none changed. Note this, to find out whether lines were taken from the end: {last}:{found}"


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"The audit log in {root} cannot be read ({error.strerror}). Set CALIBRANT_STATE_DIR to that of the service."
        raise SettingsError(msg) from error
