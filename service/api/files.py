"""Answers with a file of a result, stored or made on demand, with a strong ETag (RFC 9110, section 8.8.3).

Starlette's `FileResponse` handles ranges and HEAD; conditional requests are decided here, before anything is computed.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import Request, Response, status
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service import __version__
from service.api.problems import respond
from service.errors import RangeNotSatisfiable, ResultExpired
from service.result.files import RESULT
from service.schemas import CaseResult, problem_of

_RANGE: Final = re.compile(rb"\s*bytes\s*=\s*(\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+))*\s*", re.IGNORECASE)
"""A header Range in bytes; any other is ignored (RFC 9110, section 14.2)."""

_CACHE: Final = "private, no-cache"
"""A result never changes but may be erased, so a cache must revalidate; the answer to that is 304."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request for a file of a result.

    Args:
        request: the caller's request.
        result: folder of the result.
        name: file name under which the caller saves it.
        media_type: media type of the file.
        varies: whether the format depends on the `Accept` header.
    """

    request: Request
    result: Path
    name: str
    media_type: str
    varies: bool = False

    def stored(self) -> Response:
        """Answer with a file of the result; its ETag is its SHA-256.

        Raises:
            ResultExpired: the file was not kept.
        """
        path = kept(self.result, self.name)
        case = CaseResult.model_validate_json((self.result / RESULT).read_bytes())
        headers = self._headers(case.files[self.name])
        if self._is_current(headers["ETag"]):
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        return _RangedResponse(path, media_type=self.media_type, filename=self.name, headers=headers)

    def made(self, how: str, folder: Path, write: Callable[[Path], Path]) -> Response:
        """Answer with a file that is written now and erased afterwards; the same request gives the same bytes.

        The ETag follows from the result and `how`, so that it is known before the file is written; HEAD writes none.

        Args:
            how: distinguishes this file from all others that are made from the result.
            folder: where scratch files may lie.
            write: writes the file into the given folder and returns its path.
        """
        digest = hashlib.sha256((self.result / RESULT).read_bytes() + f"\0{how}\0{__version__}".encode())
        headers = self._headers(digest.hexdigest())
        if self._is_current(headers["ETag"]):
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        if self.request.method == "HEAD":
            return _OfNoLength(media_type=self.media_type, headers=headers)
        scratch = Path(tempfile.mkdtemp(dir=folder))
        try:
            path = write(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return _ScratchResponse(path, scratch, media_type=self.media_type, filename=self.name, headers=headers)

    def _headers(self, digest: str) -> dict[str, str]:
        headers = {"ETag": f'"{digest}"', "Cache-Control": _CACHE}
        return headers | ({"Vary": "Accept"} if self.varies else {})

    def _is_current(self, etag: str) -> bool:
        """Return whether the caller already has the file (RFC 9110, section 13.1.2: weak comparison)."""
        given = ",".join(self.request.headers.getlist("if-none-match"))
        tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
        return "*" in tags or etag in tags


def kept(result: Path, name: str) -> Path:
    """Return a file of a result.

    Raises:
        ResultExpired: it was not kept.
    """
    path = result / name
    if not path.is_file():
        msg = "This result was not kept: it was not among the outputs of the segmentation. Segment the scan again with it."
        raise ResultExpired(msg)
    return path


class _OfNoLength(Response):
    """Headers of a file that is not written yet, so that its length is unknown."""

    def init_headers(self, headers: "dict[str, str] | None" = None) -> None:  # type: ignore[override]  # we pass a dict
        super().init_headers(headers)
        del self.headers["content-length"]


class _RangedResponse(FileResponse):
    """A file, or a range of its bytes; a range beyond its end is a problem document, one that is not understood is ignored."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range" or _understands(value)]

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == status.HTTP_416_RANGE_NOT_SATISFIABLE:
                self._beyond = MutableHeaders(scope=message)["content-range"]
            if self._beyond is None:
                await send(message)

        await super().__call__({**scope, "headers": headers}, receive, watch)
        if self._beyond is not None:
            size = self._beyond.rpartition("/")[2]
            error = RangeNotSatisfiable(
                f"The file has {size} bytes. Ask for a range within them, or for the whole file."
            )
            response = respond(problem_of(error))
            response.headers["Content-Range"] = self._beyond
            await response(scope, receive, send)

    _beyond: str | None = None
    """Content-Range of an answer 416."""


def _understands(value: bytes) -> bool:
    """Return whether a header Range asks for bytes, each range with its first byte before its last."""
    pairs = (part.strip().partition(b"-") for part in value.partition(b"=")[2].split(b","))
    return bool(_RANGE.fullmatch(value)) and all(int(first or 0) <= int(last) for first, _, last in pairs if last)


class _ScratchResponse(_RangedResponse):
    """A file whose folder is erased when the answer has ended, even if the caller disconnected."""

    def __init__(self, path: Path, scratch: Path, *, media_type: str, filename: str, headers: dict[str, str]) -> None:
        super().__init__(path, media_type=media_type, filename=filename, headers=headers)
        self._scratch = scratch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
