import asyncio
import hashlib
from pathlib import Path

import pytest
from fastapi import Request, Response
from starlette.types import Message

from service.api.files import Answer, kept
from service.errors import ResultExpired
from service.schemas import CaseResult


@pytest.fixture(name="result")
def result_(tmp_path: Path) -> Path:
    """Return the folder of a result with one file."""
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "mask").write_bytes(b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    case = CaseResult(model="m@0", device="cpu", engine="torch", precision="fp32", seconds={}, files={"mask": digest})
    (folder / "result.json").write_text(case.model_dump_json())
    return folder


def asking(method: str = "GET", **headers: str) -> Request:
    """Return a request with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": method, "headers": raw, "path": "/"}
    return Request(scope)


def sent(response: Response, request: Request) -> list[Message]:
    """Return what the response sends."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(response(request.scope, request.receive, send))
    return messages


def test_the_folder_of_an_answer_goes_with_it(result: Path, tmp_path: Path) -> None:
    """The scratch folder exists while the file is sent, and not afterwards."""
    request = asking()
    seen: list[Path] = []

    def write(scratch: Path) -> Path:
        seen.append(scratch)
        (scratch / "out").write_bytes(b"made")
        return scratch / "out"

    response = Answer(request, result, "out", "application/zip").made("zip", tmp_path, write)
    assert seen[0].is_dir()

    assert b"".join(message.get("body", b"") for message in sent(response, request)) == b"made"
    assert not seen[0].exists()


def test_a_caller_who_goes_leaves_nothing(result: Path, tmp_path: Path) -> None:
    """A connection that breaks during the answer leaves no scratch file."""
    request = asking()

    def write(scratch: Path) -> Path:
        (scratch / "out").write_bytes(b"made")
        return scratch / "out"

    response = Answer(request, result, "out", "application/zip").made("zip", tmp_path, write)

    async def broken(_message: Message) -> None:
        raise OSError

    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever Starlette makes of it
        asyncio.run(response(request.scope, request.receive, broken))
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_fails_leaves_nothing(result: Path, tmp_path: Path) -> None:
    """The error is passed on, and the scratch folder is erased."""

    def fail(_scratch: Path) -> Path:
        raise ResultExpired("gone")  # noqa: EM101 - a test's

    with pytest.raises(ResultExpired):
        Answer(asking(), result, "out", "application/zip").made("zip", tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("request_", [asking("HEAD"), asking(if_none_match="*")], ids=["HEAD", "If-None-Match"])
def test_nothing_is_made_in_vain(result: Path, tmp_path: Path, request_: Request) -> None:
    """HEAD and a matching If-None-Match compute nothing."""

    def write(_scratch: Path) -> Path:
        pytest.fail("it was computed")

    response = Answer(request_, result, "out", "application/zip").made("zip", tmp_path, write)

    assert response.headers["etag"].startswith('"')
    assert b"".join(message.get("body", b"") for message in sent(response, request_)) == b""


def test_each_way_of_making_a_file_has_its_own_tag(result: Path, tmp_path: Path) -> None:
    """Different files of one result, and one file of two results, have different ETags."""
    answer = Answer(asking("HEAD"), result, "out", "application/zip")
    tags = {answer.made(how, tmp_path, lambda scratch: scratch).headers["etag"] for how in ("one", "other", "one")}
    (result / "result.json").write_text((result / "result.json").read_text().replace("m@0", "m@1"))
    tags.add(answer.made("one", tmp_path, lambda scratch: scratch).headers["etag"])

    assert len(tags) == 3


def test_a_file_that_was_not_kept_is_gone(result: Path) -> None:
    """The answer is 410 and says what to do."""
    assert kept(result, "mask").read_bytes() == b"0123456789"
    with pytest.raises(ResultExpired, match=r"it was not among the outputs"):
        kept(result, "confidence")


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-11", "bytes=0-1,99-100"])
def test_f15_a_range_beyond_the_end_is_a_problem_document(result: Path, asked: str) -> None:
    """The answer 416 says how long the file is."""
    request = asking(range=asked)
    start, body = sent(Answer(request, result, "mask", "application/gzip").stored(), request)

    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-range"]) == (416, b"bytes */10")
    assert headers[b"content-type"] == b"application/problem+json"
    assert b"/problems/range-not-satisfiable" in body["body"]
    assert b"The file has 10 bytes." in body["body"]


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=2-3", 206, b"23"),
        ("Bytes=-3", 206, b"789"),
        ("bytes=8-", 206, b"89"),
        ("bytes=5-3", 200, b"0123456789"),
        ("items=0-1", 200, b"0123456789"),
        ("bytes", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
    ],
)
def test_a_range_is_answered_and_what_is_none_is_ignored(result: Path, asked: str, status: int, content: bytes) -> None:
    """A header that is not understood gets the whole file, as RFC 9110, section 14.2, requires."""
    request = asking(range=asked)
    start, *rest = sent(Answer(request, result, "mask", "application/gzip").stored(), request)

    assert start["status"] == status
    assert b"".join(message.get("body", b"") for message in rest) == content
