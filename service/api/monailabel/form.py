"""The forms that MONAI Label's clients send, with a part for the parameters and a part for the scan."""

from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.api.checks import check_scan_of
from service.api.deps import Services
from service.api.multipart import pieces_of
from service.api.upload import FRAME_BYTES, admitted, limited_body, too_large
from service.errors import InvalidRequest
from service.schemas import Scan
from service.storage.local import Upload

_MOST_PARAMS_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sent:
    """Content of a form.

    Args:
        params: JSON text; empty if the form held none.
        scan: the file, checked and stored; None if the form held none.
    """

    params: bytes
    scan: Scan | None


async def receive_form(request: Request, services: Services, owner: str, field: str) -> Sent:
    """Return parameters and scan of a form. File names, often full paths, are ignored.

    Args:
        request: its body is the form.
        services: settings and state directory of the application.
        owner: whose scan it is.
        field: name of the part that holds the scan.

    Raises:
        InvalidRequest: not a form, a damaged one, a file in another field, or more than one.
        PayloadTooLarge: more bytes than the settings allow.
        UploadIncomplete: the connection closed first.
        ScanError: the file's header, geometry or length is invalid.
        StorageFull: no space is left.
        TooManyUploads, ServiceBusy: there is no room for another upload.
    """
    limit = services.settings.max_upload_bytes
    params = bytearray()
    received = scan_part = 0
    with admitted(request, services, owner) as place, Upload(services.state, owner) as upload:
        body = limited_body(request, limit + FRAME_BYTES)
        async for piece in pieces_of(body, request.headers.get("content-type", "")):
            if piece.is_file:
                _reject_file(piece.name, field, first=scan_part in (0, piece.part))
                scan_part = piece.part
                received += len(piece.data)
                if received > limit:
                    raise too_large(limit)
                place.grow(received)
                await run_in_threadpool(upload.write, piece.data)
            elif piece.name == "params":
                params += piece.data
                _reject_long(params)
        if not scan_part:
            return Sent(bytes(params), None)
        await run_in_threadpool(upload.flush)
        await check_scan_of(services, upload.path)
        return Sent(bytes(params), Scan(id=await run_in_threadpool(upload.keep), bytes=received))


def _reject_file(name: str, field: str, *, first: bool) -> None:
    if name == "label":
        msg = "A label was sent along; the models here take none and segment without a user's strokes. Use Auto Segmentation."
        raise InvalidRequest(msg)
    if name != field:
        msg = f"The form holds a file in another field than {field}. Send the scan there."
        raise InvalidRequest(msg)
    if not first:
        msg = f"The form holds more than one file in {field}; one is expected. Send the files of a DICOM series as one .zip."
        raise InvalidRequest(msg)


def _reject_long(params: bytearray) -> None:
    if len(params) > _MOST_PARAMS_BYTES:
        msg = f"params holds more than {_MOST_PARAMS_BYTES} bytes. Send the parameters of one request."
        raise InvalidRequest(msg)
