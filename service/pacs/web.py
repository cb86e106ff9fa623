"""Client of a PACS over DICOMweb (PS3.18): QIDO-RS, WADO-RS and STOW-RS.

Every URL is built from the configured root: RetrieveURL, BulkDataURI and redirects are never followed.
"""

import json
import re
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self, cast

import httpx

from service.errors import PacsBadResponse, PacsBusy, PacsRefused, PacsUnreachable, SeriesNotFound
from service.pacs.config import Pacs
from service.pacs.multipart import CONTENT_TYPE, EMPTY_BODY, body_of, parts_of
from service.pacs.selection import Series

MAX_JSON_BYTES: Final = 64 << 20
MAX_SERIES_BYTES: Final = 4 << 30

_JSON: Final = "application/dicom+json"
_DICOM: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PAGE: Final = 1000
_CONNECT_S: Final = 5.0
_FORBIDDEN: Final = (401, 403, 404, 405)
_BUSY: Final = frozenset({408, 425, 429})

# Tags of DICOM JSON (PS3.18 annex F).
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_MODALITY, _DESCRIPTION, _BODY_PART, _MANUFACTURER = "00080060", "0008103E", "00180015", "00080070"
_COUNT, _FAILED, _REASON = "00201209", "00081198", "00081197"


class DicomWeb:
    """A PACS over DICOMweb; a context manager. Every method may raise a `PacsError`, whose class says what to do."""

    def __init__(self, pacs: Pacs) -> None:
        """Prepare without sending anything.

        Raises:
            SettingsError: a secret or a certificate cannot be read.
        """
        self._root = str(pacs.url).rstrip("/")
        self._deadline_s = pacs.deadline_s
        headers = {"Authorization": f"Bearer {pacs.token.read()}"} if pacs.token else {}
        self._http = httpx.Client(
            headers=headers,
            auth=(pacs.user, pacs.password.read()) if pacs.user and pacs.password else None,
            verify=pacs.tls.context() if self._root.startswith("https") else True,
            timeout=httpx.Timeout(pacs.timeout_s, connect=min(_CONNECT_S, pacs.timeout_s)),
            trust_env=False,  # no proxy and no .netrc: only the PACS file counts
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def find_series(self, *, study: str | None = None, series: str | None = None) -> list[Series]:
        """Return the series of a study, or the one with a Series Instance UID.

        Raises:
            SeriesNotFound: an argument is not a UID.
        """
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        query = {name: _uid(uid) for name, uid in uids.items() if uid is not None}
        path = f"/studies/{query.pop('StudyInstanceUID')}/series" if study else "/series"
        fields = {"includefield": [_DESCRIPTION, _BODY_PART, _MANUFACTURER, _COUNT]}
        return [_series_of(item, study or "") for item in self._query(path, query | fields)]

    def find_instances(self, study: str, series: str) -> list[str]:
        """Return the sorted SOP Instance UIDs of a series."""
        items = self._query(f"/studies/{_uid(study)}/series/{_uid(series)}/instances", {})
        return sorted({_text(item, _INSTANCE) for item in items} - {""})

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Return whether the PACS has an object with this SOP Instance UID in this study and series."""
        query = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        return any(_text(item, _INSTANCE) == instance for item in self._query("/instances", query))

    def fetch_series(self, study: str, series: str) -> Iterator[bytes]:
        """Yield the files (PS3.10) of a series in their stored transfer syntax."""
        yield from self._fetch(f"/studies/{_uid(study)}/series/{_uid(series)}")

    def fetch_instance(self, study: str, series: str, instance: str) -> bytes:
        """Return the file of one object."""
        objects = list(self._fetch(f"/studies/{_uid(study)}/series/{_uid(series)}/instances/{_uid(instance)}"))
        if len(objects) != 1:
            msg = f"The PACS answered {len(objects)} objects; one was requested."
            raise PacsBadResponse(msg)
        return objects[0]

    def any_series(self) -> Series | None:
        """Return any series, None if the PACS is empty."""
        with self._answer("GET", "/series", params={"limit": 1}, headers={"Accept": _JSON}) as answer:
            items = self._listed(answer)
        return _series_of(items[0], "") if items else None

    def may_store(self) -> bool:
        """Return whether this service has the right to store; an empty request tests it without storing anything."""
        headers = {"Content-Type": CONTENT_TYPE, "Accept": _JSON}
        with self._answer("POST", "/studies", headers=headers, content=EMPTY_BODY) as answer:
            status = answer.status_code
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            _reject_status(status)
        return status not in _FORBIDDEN

    def store(self, path: Path) -> None:
        """Store one DICOM file (STOW-RS, PS3.18 10.5). Success does not prove that the PACS keeps it: query afterwards.

        Raises:
            PacsBusy: 5xx, 408, 429, or out of resources (0xA7xx); a retry may succeed.
            PacsRefused: any other 4xx, or another reason (PS3.18 table 10.5.3-1); a retry cannot succeed.
        """
        length, body = body_of(path)
        headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(length), "Accept": _JSON}
        with self._answer("POST", "/studies", headers=headers, content=body) as answer:
            response = _json(self._read(answer)) if _says_json(answer) else None
        for failed in _items(response, _FAILED):
            raise _failure(_number(failed, _REASON))
        _reject_status(answer.status_code)
        if response is None:
            msg = "The PACS answered a STOW-RS request with something that is not DICOM JSON. Check whether the configured url is its DICOMweb root."
            raise PacsBadResponse(msg)

    def _query(self, path: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        previous: list[Any] = []
        while True:
            page = {"limit": _PAGE, "offset": offset}
            with self._answer("GET", path, params=params | page, headers={"Accept": _JSON}) as answer:
                items = self._listed(answer)
            if items == previous:  # the server ignores offsets
                return
            yield from items
            if len(items) != _PAGE:
                return
            offset, previous = offset + _PAGE, items

    def _listed(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """Return the datasets in the response to a query."""
        _reject_status(answer.status_code)
        if answer.status_code == httpx.codes.NO_CONTENT:
            return []
        items = _json(self._read(answer)) if _says_json(answer) else None
        if not isinstance(items, list):
            raise PacsBadResponse(_NO_JSON)
        return items

    def _fetch(self, path: str) -> Iterator[bytes]:
        with self._answer("GET", path, headers={"Accept": _DICOM}) as answer:
            _reject_status(answer.status_code)
            yield from parts_of(self._chunks(answer, MAX_SERIES_BYTES), answer.headers.get("Content-Type", ""))

    @contextmanager
    def _answer(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:  # noqa: ANN401 - httpx's own
        try:
            with self._http.stream(method, self._root + path, **options) as answer:
                answer.extensions["calibrant_until"] = time.monotonic() + self._deadline_s
                yield answer
        except httpx.TransportError as error:
            msg = f"The PACS refused or dropped the connection ({type(error).__name__}). It is tried again; check whether it runs."
            raise PacsUnreachable(msg) from error
        except httpx.DecodingError as error:
            raise PacsBadResponse(_NO_JSON) from error

    def _chunks(self, answer: httpx.Response, limit: int) -> Iterator[bytes]:
        """Yield a body, limited in bytes and in time: a server that drips bytes could otherwise hold a job forever."""
        received = 0
        for chunk in answer.iter_bytes():
            received += len(chunk)
            if received > limit:
                msg = f"The answer of the PACS is longer than the {limit >> 20} MiB that are read."
                raise PacsBadResponse(msg)
            if time.monotonic() > answer.extensions["calibrant_until"]:
                msg = f"The answer of the PACS took longer than {self._deadline_s:.0f} s."
                raise PacsUnreachable(msg)
            yield chunk

    def _read(self, answer: httpx.Response) -> bytes:
        return b"".join(self._chunks(answer, MAX_JSON_BYTES))


class Writable(Protocol):
    """A sequential target for a zip."""

    def write(self, chunk: bytes, /) -> int:
        """Append a chunk and return its length."""
        ...

    def flush(self) -> None:
        """Pass on buffered bytes."""
        ...


def write_zip(files: Iterable[bytes], out: Writable) -> int:
    """Write DICOM files to an uncompressed zip under neutral names and return their number."""
    count = 0
    with zipfile.ZipFile(cast("IO[bytes]", out), "w") as archive:
        for content in files:
            count += 1
            archive.writestr(zipfile.ZipInfo(f"{count:06}.dcm"), content)
    return count


def _uid(uid: str) -> str:
    """Return a UID (PS3.5 9.1) after checking that it is safe in a URL.

    Raises:
        SeriesNotFound: it is not a UID.
    """
    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        msg = "A UID has digits and dots, at most 64. Take it from the PACS."
        raise SeriesNotFound(msg)
    return uid


def _reject_status(status: int) -> None:
    if httpx.codes.is_success(status):
        return
    if httpx.codes.is_server_error(status) or status in _BUSY:
        msg = f"The PACS answered HTTP {status}. It is tried again."
        raise PacsBusy(msg)
    if httpx.codes.is_client_error(status):
        hint = {
            401: "Check its credentials.",
            403: "Check its rights.",
            404: "It does not hold what was requested.",
        }.get(status)
        msg = f"The PACS answered HTTP {status}. {hint or 'Trying again will not help.'}"
        raise PacsRefused(msg)
    msg = f"The PACS answered HTTP {status}; redirects are not followed. Check its configured url."
    raise PacsBadResponse(msg)


def _failure(reason: int) -> PacsBusy | PacsRefused:
    """Return the error for a Failure Reason (0008,1197): PS3.18 table 10.5.3-1, as the status of C-STORE (PS3.4 B.2.3)."""
    if reason & 0xFF00 == 0xA700:  # noqa: PLR2004 - out of resources
        return PacsBusy(
            f"The PACS could not store an object for lack of resources (0x{reason:04X}). It is tried again."
        )
    return PacsRefused(f"The PACS refused an object (failure reason 0x{reason:04X}). Trying again will not help.")


def _series_of(item: dict[str, Any], study: str) -> Series:
    return Series(
        study=_text(item, _STUDY) or study,
        uid=_text(item, _SERIES),
        modality=_text(item, _MODALITY),
        description=_text(item, _DESCRIPTION),
        body_part=_text(item, _BODY_PART),
        manufacturer=_text(item, _MANUFACTURER),
        instances=_number(item, _COUNT) or None,
    )


def _says_json(answer: httpx.Response) -> bool:
    return "json" in answer.headers.get("Content-Type", "")


def _json(content: bytes) -> Any:  # noqa: ANN401 - whatever the PACS sent
    try:
        return json.loads(content) if content else []
    except ValueError as error:
        raise PacsBadResponse(_NO_JSON) from error


def _items(response: Any, tag: str) -> list[dict[str, Any]]:  # noqa: ANN401 - as above
    dataset = response[0] if isinstance(response, list) and response else response
    values = dataset.get(tag, {}).get("Value", []) if isinstance(dataset, dict) else []
    return [item for item in values if isinstance(item, dict)]


def _value(item: dict[str, Any], tag: str) -> Any:  # noqa: ANN401 - as above
    try:
        return item[tag]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return None


def _text(item: dict[str, Any], tag: str) -> str:
    value = _value(item, tag)
    return value if isinstance(value, str) else ""


def _number(item: dict[str, Any], tag: str) -> int:
    try:
        return int(_value(item, tag) or 0)
    except (TypeError, ValueError):
        return 0


_NO_JSON: Final = (
    "The PACS answered something that is not DICOM JSON. Check whether the configured url is its DICOMweb root."
)
