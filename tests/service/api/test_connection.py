import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from socket import create_connection, socket
from typing import Any

import httpx
import pytest
import uvicorn

from service.api.connection import BoundedConnection, ConnectionLimits, bounded
from service.settings import Settings

LIMITS = ConnectionLimits(head_bytes=65536, head_s=0.5, body_rate=1000, connections=20, window_s=0.5)

Server = Callable[..., AbstractContextManager[int]]


async def echo(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer with the number of bytes of the body; a path of digits answers with so many bytes."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    asked = scope["path"].strip("/")
    body = b"x" * int(asked) if asked else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(**changes: float) -> Iterator[int]:
    """Serve `echo` in a thread with these limits, and yield the port."""
    limits = {name: changes.get(name, getattr(LIMITS, name)) for name in LIMITS.__dataclass_fields__}
    connection = type("Connection", (BoundedConnection,), {"limits": ConnectionLimits(**limits)})
    server = uvicorn.Server(uvicorn.Config(echo, port=0, lifespan="off", log_config=None, http=connection, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture(name="port", scope="module")
def port_() -> Iterator[int]:
    """Yield the port of a server with `LIMITS`."""
    with served() as port:
        yield port


def answer_of(connection: socket) -> tuple[str, str]:
    """Return status line and body of the answer, empty for a connection that was closed without one."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    head, _, body = received.decode().partition("\r\n\r\n")
    return head.partition("\r\n")[0], body


def ask(port: int, *parts: bytes, pause_s: float = 0) -> tuple[str, str]:
    """Send bytes with pauses, and return the answer."""
    with create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
        return answer_of(connection)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


def test_what_is_within_the_bounds_is_served(port: int) -> None:
    """A head just below the limit, a body in pieces, many small requests on one connection."""
    padding = b"x" * (LIMITS.head_bytes - 200)
    assert ask(port, HEAD + b"A: " + padding + b"\r\n\r\n") == ("HTTP/1.1 200 OK", "0")
    assert ask(port, HEAD + b"Content-Length: 4\r\n\r\n", b"ab", b"cd", pause_s=0.05)[1] == "4"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        assert {http.post("/", content=b"x" * 300_000).text for _ in range(3)} == {"300000"}
    pipelined = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"y" * 500 + b"\r\n\r\n"
    assert ask(port, pipelined * 300 + HEAD + b"\r\n")[1].count("200 OK") == 300


@pytest.mark.parametrize(
    "start",
    [
        HEAD + b"A: ",
        b"GET /",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: ",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;extension=",
    ],
)
def test_f5_an_endless_header_is_refused_and_slows_nobody_down(port: int, start: bytes) -> None:
    """100 MiB of a header, request line, trailer or chunk extension: 431, a ping takes under 0.5 s, the memory does not grow."""
    before = _resident_bytes()
    taken: list[float] = []
    over = threading.Event()

    def ping() -> None:
        while not over.is_set():
            started = time.monotonic()
            httpx.get(f"http://127.0.0.1:{port}/")
            taken.append(time.monotonic() - started)
            time.sleep(0.01)

    thread = threading.Thread(target=ping)
    thread.start()
    with create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x" * (1 << 20))
        status = answer_of(connection)[0]
    over.set()
    thread.join()

    assert status == "HTTP/1.1 431 Request Header Fields Too Large"
    assert max(taken) < 0.5
    assert _resident_bytes() - before < 16 << 20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_f5_a_head_in_one_piece_is_refused_too(port: int) -> None:
    """A head that is complete with its first bytes is measured, too: many headers, each of them short."""
    status, body = ask(port, HEAD + b"A: b\r\n" * 20_000 + b"\r\n")

    assert status == "HTTP/1.1 431 Request Header Fields Too Large"
    assert '"type":"/problems/headers-too-large"' in body


def test_f5_a_head_must_be_complete_in_time(port: int) -> None:
    """Half a head, sent byte by byte or on a connection that was used before, is answered with 408; a silent one is closed."""
    assert ask(port, b"GET / HTTP/1.1\r\nA: ", *[b"x"] * 6, pause_s=0.1)[0] == "HTTP/1.1 408 Request Timeout"
    first = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(first)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /")
        assert answer_of(connection)[0] == "HTTP/1.1 408 Request Timeout"
    started = time.monotonic()
    assert ask(port) == ("", "")
    assert 0.4 < time.monotonic() - started < 3


def test_f5_a_body_must_keep_a_rate(port: int) -> None:
    """A body that stands still, or drips, is answered with 408; one that keeps the rate is taken, however long it needs."""
    length = HEAD + b"Content-Length: 3000\r\n\r\n"
    assert ask(port, length + b"x" * 100)[0] == "HTTP/1.1 408 Request Timeout"
    status, body = ask(port, length, *[b"x"] * 8, pause_s=0.1)
    assert status == "HTTP/1.1 408 Request Timeout"
    assert "at least 1000 per second" in body
    assert ask(port, length, *[b"x" * 500] * 6, pause_s=0.2)[1] == "3000"


def test_f5_an_answer_must_be_taken(port: int) -> None:
    """A client that reads nothing of a large answer loses its connection."""
    with create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /100000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        received = 0
        try:
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        except ConnectionResetError:
            pass
    assert received < 100_000_000


def test_f5_connections_are_bounded_and_silent_ones_give_way() -> None:
    """Silent connections never lock anybody out; if all are in use, the answer is 503 with Retry-After."""
    with served(head_s=30, connections=3, window_s=30) as port:
        silent = [create_connection(("127.0.0.1", port), timeout=10) for _ in range(10)]
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "0"
        for connection in silent:
            connection.close()
        busy = [create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
        for connection in busy:
            connection.sendall(HEAD + b"Content-Length: 9\r\n\r\nx")
        time.sleep(0.2)
        refused = httpx.get(f"http://127.0.0.1:{port}/")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["type"] == "/problems/service-busy"
        for connection in busy:
            connection.sendall(b"x" * 8)
            assert answer_of(connection)[1] == "9"
            connection.close()


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n"]
)
def test_what_is_not_http_is_a_problem_document(port: int, sent: bytes) -> None:
    """TLS or nonsense at the port is answered with 400."""
    status, body = ask(port, sent)

    assert status == "HTTP/1.1 400 Bad Request"
    assert '"type":"/problems/malformed-request"' in body


def test_a_client_that_breaks_off_is_forgotten(port: int) -> None:
    """A connection that is reset in the middle of its body leaves the server as it was."""
    with create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\nxx")
    assert ask(port, HEAD + b"\r\n")[1] == "0"


def test_the_limits_are_settings() -> None:
    """The class of the connections has the limits of the settings."""
    limits = bounded(
        Settings(max_header_bytes=9, header_deadline_s=8, min_upload_bytes_per_s=7, max_connections=6)
    ).limits

    assert (limits.head_bytes, limits.head_s, limits.body_rate, limits.connections) == (9, 8, 7, 6)
