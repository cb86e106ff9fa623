"""A request body -> a checked scan in the state directory, never whole in memory."""

from typing import Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.api.deps import Parts
from service.errors import PayloadTooLarge, UnsupportedMediaType, UploadIncomplete
from service.pipeline.sandbox import check_sandboxed
from service.storage.local import Upload

# What a scan is never sent as. Everything else is accepted, curl's default too: the bytes decide.
_WRAPPED: Final = ("multipart/", "application/json", "text/")


async def receive_scan(request: Request, parts: Parts) -> str:
    """Return the SHA-256 of the body, which lies complete, checked and flushed to the disk in the state directory.

    Raises:
        UnsupportedMediaType: the scan is wrapped in a form, text or JSON, or in a content encoding.
        PayloadTooLarge: more bytes than the settings allow.
        UploadIncomplete: the connection closed first.
        ScanError: header, geometry or length of the file are at fault.
        StorageFull: no space is left.
    """
    limit = parts.settings.max_upload_bytes
    _reject_headers(request, limit)
    with Upload(parts.state) as upload:
        received = 0
        try:
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise _too_large(limit)
                await run_in_threadpool(upload.write, chunk)
        except ClientDisconnect as error:
            msg = f"The connection closed after {received} bytes. Send the scan again."
            raise UploadIncomplete(msg) from error
        await run_in_threadpool(upload.flush)
        await run_in_threadpool(check_sandboxed, upload.path)
        return await run_in_threadpool(upload.keep)


def _reject_headers(request: Request, limit: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith(_WRAPPED):
        msg = "The body must be the file itself, not a form, JSON or text. With curl: --data-binary @scan.nii.gz"
        raise UnsupportedMediaType(msg)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        msg = "A Content-Encoding was found; none is accepted. Send a .nii.gz as it is, without that header."
        raise UnsupportedMediaType(msg)
    if int(request.headers.get("content-length", "0")) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"At most {limit} bytes are accepted. Compress the scan (.nii.gz), or crop it.")
