"""Follow the change log of an Orthanc by its own REST interface, from a position that survives restarts.

Orthanc calls a series stable when no image has arrived for a while (its StableAge). A stable series may be incomplete
and may become stable more than once: changes are only hints.
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
    """A page of the change log.

    Args:
        series: Series Instance UIDs that became stable.
        last: position after this page.
        done: whether this is the last page at the moment.
    """

    series: list[str]
    last: int
    done: bool


class Position:
    """The stored position in the change log of one Orthanc."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the position, None if none was stored yet."""
        return int(self._path.read_text()) if self._path.is_file() else None

    def write(self, position: int) -> None:
        """Store the position durably."""
        draft = self._path.with_name(f".{self._path.name}")
        write_durably(draft, str(position).encode())
        draft.rename(self._path)
        sync_folder(self._path.parent)


class Orthanc:
    """The REST interface of one Orthanc; `close` ends the connection."""

    def __init__(self, pacs: Pacs) -> None:
        """Prepare without sending anything.

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
        """Close the connection."""
        self._http.close()

    def end(self) -> int:
        """Return the position after the last change."""
        return _number(self._get("/changes?last"), "Last")

    def since(self, position: int) -> Changes:
        """Return the next changes after a position.

        Raises:
            PacsError: Orthanc does not answer, or the answer is not Orthanc's.
        """
        page = self._get(f"/changes?since={position}&limit={_LIMIT}")
        stable = [change for change in page.get("Changes", []) if change.get("ChangeType") == _CHANGE]
        last = _number(page, "Last")
        # A smaller number means that a new database at the same address counts from the beginning.
        last = self.end() if last < position else last
        uids = [uid for change in stable if (uid := self._uid(str(change.get("ID", ""))))]
        return Changes(list(dict.fromkeys(uids)), last, bool(page.get("Done", True)))

    def _uid(self, identifier: str) -> str | None:
        """Return the Series Instance UID for Orthanc's own identifier, None if the series is gone."""
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
            msg = f"Orthanc refused or dropped the connection ({type(error).__name__}). It is tried again."
            raise PacsUnreachable(msg) from error
        if answer.is_server_error:
            msg = f"Orthanc answered HTTP {answer.status_code}. It is tried again."
            raise PacsBusy(msg)
        if answer.is_client_error:
            msg = f"Orthanc answered HTTP {answer.status_code}. Check its configured address and credentials."
            raise PacsRefused(msg)
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            msg = "The answer is not Orthanc's. Check its configured address."
            raise PacsBadResponse(msg)
        return content


def _number(content: dict[str, Any], name: str) -> int:
    try:
        return int(content[name])
    except (KeyError, TypeError, ValueError):
        msg = "The answer is not Orthanc's. Check its configured address."
        raise PacsBadResponse(msg) from None
