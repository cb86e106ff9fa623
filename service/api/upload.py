"""Streams a request body into a checked scan in the state directory, never whole in memory."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.api.checks import check_scan_of, select_series
from service.api.deps import Services
from service.api.inflight import Admitted
from service.api.multipart import Piece, file_of
from service.api.parameters import parameters_of, suggestion
from service.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType, UploadIncomplete
from service.schemas import Scan
from service.storage.local import Upload
from service.volume import Stated

# Media types that no scan has. All others are accepted, also curl's default: the bytes decide.
_WRAPPED: Final = ("application/json", "text/")

SeriesQuery = Annotated[
    str | None,
    Query(
        max_length=64, pattern=r"^[0-9.]+$", description="Series Instance UID: the one to take from a zip of several."
    ),
]
"""Parameter of a route that takes a scan."""

SCAN_BODY: Final = {
    "requestBody": {
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
        "description": "The scan: NIfTI (.nii, .nii.gz), NRRD, MHA, FreeSurfer's .mgz or .mgh, a DICOM file of all frames, or a zip of one DICOM series.",
    }
}
"""How OpenAPI describes the body of a route that takes a scan."""

FRAME_BYTES: Final = 1 << 16
"""Bytes that a form may add to the file: boundaries, headers and other fields."""


@dataclass(slots=True)
class Received:
    """A file that has arrived.

    Args:
        size: bytes.
        says: parts of its name, if a form gave it one of BIDS.
    """

    size: int = 0
    says: Mapping[str, str] = field(default_factory=dict)


Judge = Callable[[Mapping[str, str], Stated], None]
"""Called with what the file's name and the file itself say, before the scan is kept; it refuses by raising."""


def keep_all(_name: Mapping[str, str], _stated: Stated) -> None:
    """Refuse nothing."""


async def receive_scan(
    request: Request, services: Services, owner: str, judge: Judge = keep_all, series: str | None = None
) -> tuple[Scan, Mapping[str, str]]:
    """Store the scan of the body, complete, checked and flushed to the disk; return it with what its name says.

    The body is the file itself, or a form (multipart/form-data) with one file.

    Args:
        request: its body is the scan.
        services: settings and state directory.
        owner: whose scan it is.
        judge: may refuse the scan.
        series: UID of the only series of a zip that is kept; None if it holds one.

    Raises:
        UnsupportedMediaType: the body is text or JSON, or has a content encoding.
        PayloadTooLarge: more bytes than the settings allow.
        UploadIncomplete: the connection closed first.
        InvalidRequest: the form holds no file, or more than one; or the file does not hold the series.
        ScanError: the file's header, geometry or length is invalid.
        StorageFull: no space is left.
        TooManyUploads: the owner sends too many at a time.
        ServiceBusy: too many others are being sent or checked.
    """
    with admitted(request, services, owner) as place, Upload(services.state, owner) as upload:
        received = await receive_file(request, upload, services.settings.max_upload_bytes, place)
        if series is not None:
            received.size = await select_series(services, upload, series)
        judge(received.says, await check_scan_of(services, upload.path))
        return Scan(id=await run_in_threadpool(upload.keep), bytes=received.size), received.says


def admitted(request: Request, services: Services, owner: str) -> AbstractContextManager[Admitted]:
    """Give a request its place among the uploads, by the length that it announces.

    Raises:
        UnsupportedMediaType: the body is text or JSON, or has a content encoding.
        PayloadTooLarge: the announced length exceeds the limit.
        TooManyUploads, ServiceBusy: there is no room for it.
    """
    reject_headers(request, services.settings.max_upload_bytes)
    return services.uploads.admit(owner, int(request.headers.get("content-length", "0")))


async def receive_file(request: Request, upload: Upload, limit: int, place: Admitted) -> Received:
    """Write the file of the body to `upload`, flush it to the disk and return its size and what its name says.

    Raises:
        CalibrantError: as `receive_scan`, except ScanError: the file is not examined.
    """
    received = Received()
    async for piece in _content(request, limit):
        received.says = piece.says
        received.size += len(piece.data)
        if received.size > limit:
            raise too_large(limit)
        place.grow(received.size)
        await run_in_threadpool(upload.write, piece.data)
    await run_in_threadpool(upload.flush)
    return received


async def _content(request: Request, limit: int) -> AsyncIterator[Piece]:
    """Yield the file piece by piece."""
    body = limited_body(request, limit + FRAME_BYTES)
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/"):
        async for piece in file_of(body, content_type, partial(_reject_field, parameters_of(request))):
            yield piece
    else:
        async for chunk in body:
            yield Piece(1, "", is_file=True, data=chunk)


def _reject_field(known: Collection[str], name: str) -> None:
    """Refuse a form whose parameters would be ignored.

    Raises:
        InvalidRequest: always.
    """
    if name == "file":
        msg = "The form's field `file` holds no file. With curl: -F file=@scan.nii.gz"
        raise InvalidRequest(msg)
    if name in known:
        msg = f"The form holds a field besides the file. Send it as a query parameter: ?{name}=..."
        raise InvalidRequest(msg)
    msg = f"The form holds a field besides the file; parameters are sent in the query. {suggestion(name, known)}"
    raise InvalidRequest(msg)


async def limited_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        PayloadTooLarge: the body exceeds the limit.
        UploadIncomplete: the connection closed first.
    """
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:
                raise too_large(limit)
            yield chunk
    except ClientDisconnect as error:
        msg = f"The connection closed after {received} bytes. Send the scan again."
        raise UploadIncomplete(msg) from error


def reject_headers(request: Request, limit: int) -> None:
    """Reject an upload by its headers, before a byte of the body is read.

    Raises:
        UnsupportedMediaType: the body is text or JSON, or has a content encoding.
        PayloadTooLarge: the announced length exceeds the limit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith(_WRAPPED):
        msg = "The body must be the file itself or a form with one file, not JSON or text. With curl: --data-binary @scan.nii.gz"
        raise UnsupportedMediaType(msg)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        msg = "No Content-Encoding is accepted. Send a .nii.gz as it is, without that header."
        raise UnsupportedMediaType(msg)
    framed = media_type.startswith("multipart/")
    if int(request.headers.get("content-length", "0")) > limit + (FRAME_BYTES if framed else 0):
        raise too_large(limit)


def too_large(limit: int) -> PayloadTooLarge:
    """Return the error of a body over the limit."""
    return PayloadTooLarge(f"At most {limit} bytes are accepted. Compress the scan (.nii.gz), or crop it.")
