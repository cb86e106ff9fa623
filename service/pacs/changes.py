"""What has changed at an Orthanc since it was last asked, by its own REST interface; the position outlives a restart.

Orthanc calls a series stable when nothing has come for a while (its StableAge). That is not the same as complete, and
it may call a series so more than once: what is read here are hints.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from service.errors import PacsBadResponse, PacsBusy, PacsRefused, PacsUnreachable
from service.pacs.config import Pacs
from service.storage.durable import sync_folder, write_durably

_LIMIT: Final = 100
_CHANGE: Final = "StableSeries"


@dataclass(frozen=True, slots=True)
class Changes:
    """A piece of the list.

    Args:
        series: Series Instance UIDs that were called stable.
        last: position after this piece.
        done: whether nothing follows at the moment.
    """

    series: list[str]
    last: int
    done: bool


class Position:
    """How far the changes of one Orthanc have been followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the position; None before the first."""
        return int(self._path.read_text()) if self._path.is_file() else None

    def write(self, position: int) -> None:
        """Remember the position."""
        draft = self._path.with_name(f".{self._path.name}")
        write_durably(draft, str(position).encode())
        draft.rename(self._path)
        sync_folder(self._path.parent)


class Orthanc:
    """The REST interface of one Orthanc; `close` ends the connection."""

    def __init__(self, pacs: Pacs) -> None:
        """Prepare; nothing is sent.

        Raises:
            SettingsError: a secret or a certificate cannot be read.
        """
        root = str(pacs.orthanc).rstrip("/")
        headers = {"Authorization": f"Bearer {pacs.token.read()}"} if pacs.token else {}
        self._root = root
        self._http = httpx.Client(
            headers=headers,
            auth=(pacs.user, pacs.password.read()) if pacs.user and pacs.password else None,
            verify=pacs.tls.context() if root.startswith("https") else True,
            timeout=pacs.timeout_s,
            trust_env=False,
        )

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def end(self) -> int:
        """Return the position after the last change that there is."""
        return _number(self._get("/changes?last"), "Last")

    def since(self, position: int) -> Changes:
        """Return the next changes after a position.

        Raises:
            PacsError: Orthanc does not answer, or answers something else.
        """
        found = self._get(f"/changes?since={position}&limit={_LIMIT}")
        stable = [each for each in found.get("Changes", []) if each.get("ChangeType") == _CHANGE]
        last = _number(found, "Last")
        # Another database stands behind the same address: its numbers begin anew.
        last = self.end() if last < position else last
        uids = [uid for each in stable if (uid := self._uid(str(each.get("ID", ""))))]
        return Changes(list(dict.fromkeys(uids)), last, bool(found.get("Done", True)))

    def _uid(self, identifier: str) -> str | None:
        """Return the Series Instance UID of Orthanc's own identifier; None if the series is gone."""
        if not re.fullmatch(r"[0-9a-f-]{44}", identifier):
            return None
        try:
            tags = self._get(f"/series/{identifier}").get("MainDicomTags", {})
        except PacsRefused:  # deleted meanwhile
            return None
        return str(tags.get("SeriesInstanceUID", "")) or None

    def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = self._http.get(self._root + path)
        except httpx.TransportError as error:
            msg = f"Orthanc gave no connection, or none that lasted ({type(error).__name__}). It is tried again."
            raise PacsUnreachable(msg) from error
        if answer.is_server_error:
            msg = f"Orthanc answered HTTP {answer.status_code}. It is tried again."
            raise PacsBusy(msg)
        if answer.is_client_error:
            msg = f"Orthanc answered HTTP {answer.status_code}. Look at its configured address and credentials."
            raise PacsRefused(msg)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            msg = "Something else than Orthanc answered. Look at its configured address."
            raise PacsBadResponse(msg)
        return found


def _number(found: dict[str, Any], name: str) -> int:
    try:
        return int(found[name])
    except (KeyError, TypeError, ValueError):
        msg = "Something else than Orthanc answered. Look at its configured address."
        raise PacsBadResponse(msg) from None
