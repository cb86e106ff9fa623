import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from orthanc import free_port
from pynetdicom import AE

from service.pacs import listener
from service.pacs.config import ServerTls
from service.pacs.dimse import VERIFICATION
from service.pacs.listener import listen

# pynetdicom raises in the thread of an association whose caller hangs up early; the association ends all the same.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(name="port")
def port_(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield the port of a listener that lets each sender have three connections, with short deadlines."""
    monkeypatch.setattr(listener, "REQUEST_S", 1.0)
    port, ours = free_port(), AE(ae_title="OURS")
    ours.add_supported_context(VERIFICATION)
    listen(ours, ("127.0.0.1", port), [], most=3)
    yield port
    ours.shutdown()


def echo(port: int, source: str = "127.0.0.1") -> bool:
    """Return whether a caller from an address is served."""
    caller = AE(ae_title="CALLER")
    caller.acse_timeout = 5
    caller.add_requested_context(VERIFICATION)
    association = caller.associate("127.0.0.1", port, ae_title="OURS", bind_address=(source, 0))
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return status == 0


def resident_bytes() -> int:
    """Return the memory of this process, which holds the listener."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def ends_within(connection: socket.socket, seconds: float) -> bool:
    """Return whether the listener closes a connection."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_f14_a_pdu_that_announces_too_much_is_not_read(port: int) -> None:
    """The connection ends at its first six bytes, and memory does not grow with what is sent."""
    before = resident_bytes()
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(struct.pack(">BBL", 1, 0, 300 << 20))
        try:
            for _ in range(300):
                caller.sendall(bytes(1 << 20))
        except ConnectionError:
            pass
        assert ends_within(caller, 3)
    assert resident_bytes() - before < 50 << 20
    assert echo(port)


@pytest.mark.parametrize(
    "sent", [b"", b"\x01", struct.pack(">BBL", 1, 0, 1000), struct.pack(">BBL", 1, 0, 1000) + b"x"]
)
def test_f14_a_caller_that_falls_silent_is_hung_up_on(port: int, sent: bytes) -> None:
    """Before the first byte, within the head of a PDU, and within its body."""
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(sent)
        assert ends_within(caller, 4)


def test_f14_a_caller_that_trickles_is_hung_up_on(port: int) -> None:
    """The deadline is that of the whole PDU, not of each byte."""
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(struct.pack(">BBL", 1, 0, 1000))
        deadline = time.monotonic() + 4
        while not ends_within(caller, 0.1):
            assert time.monotonic() < deadline
            with suppress(ConnectionError):
                caller.sendall(b"x")


def test_f14_silent_connections_lock_no_sender_out(port: int) -> None:
    """Neither those of another address nor its own: who has said nothing for longest makes room."""
    with ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert echo(port)
        assert echo(port, "127.0.0.2")
        many = sum("AcceptorThread" in thread.name for thread in threading.enumerate())
        assert many <= 3 * 3


def test_f14_a_sender_has_no_more_associations_than_its_bound(port: int) -> None:
    """Another address still gets in; when one association ends, so does the sender."""
    caller = AE(ae_title="CALLER")
    caller.add_requested_context(VERIFICATION)
    held = [caller.associate("127.0.0.1", port, ae_title="OURS") for _ in range(3)]
    assert all(association.is_established for association in held)

    with socket.create_connection(("127.0.0.1", port)) as refused:
        assert ends_within(refused, 0.9)
    assert echo(port, "127.0.0.2")
    held[0].release()
    held[0].join(5)
    time.sleep(0.2)  # its other end notices
    assert echo(port)
    for association in held[1:]:
        association.release()


def test_f14_a_caller_that_does_not_encrypt_delays_no_other(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handshake has a thread and a deadline of its own."""
    server_side = ServerTls(certificate_file=certificate[0], key_file=certificate[1]).context()
    client_side = ssl.create_default_context(cafile=str(certificate[0]))
    monkeypatch.setattr(listener, "REQUEST_S", 2.0)
    port, ours = free_port(), AE(ae_title="OURS")
    ours.add_supported_context(VERIFICATION)
    listen(ours, ("127.0.0.1", port), [], most=3, tls=server_side)
    try:
        with socket.create_connection(("127.0.0.1", port)) as silent:
            caller = AE(ae_title="CALLER")
            caller.add_requested_context(VERIFICATION)
            started = time.monotonic()
            association = caller.associate("127.0.0.1", port, ae_title="OURS", tls_args=(client_side, "127.0.0.1"))
            assert association.is_established
            assert time.monotonic() - started < 1.5
            association.release()
            assert ends_within(silent, 4)
    finally:
        ours.shutdown()
