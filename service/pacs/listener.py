"""A DICOM listener that callers cannot starve: bounded PDUs, deadlines, and room for who speaks.

pynetdicom reads whatever length a PDU announces, waits for its end without a deadline, and does the TLS handshake of one
caller while all others wait. What it counts as associations includes connections that have said nothing.
"""

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

log = structlog.get_logger(__name__)

MAX_PDU_BYTES: Final = 1 << 20
"""Longest PDU that is read. Callers are told 16 KiB for data (PS3.8 D.1); requests of an association are a few kB long."""

REQUEST_S: Final = 5.0
"""Seconds in which a caller must complete the TLS handshake, and then its request of an association."""

PDU_S: Final = 60.0
"""Seconds in which a PDU must arrive whole, once its first byte has."""

_SENDERS: Final = 8
"""Senders that may use all the associations that one may have, at once."""


_HEAD_BYTES: Final = 6
"""Type and length, with which a PDU begins (PS3.8 9.3.1)."""


class _BoundedSocket(AssociationSocket):
    """Reads a PDU within its bound and its deadline."""

    _deadline = 0.0

    def recv(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, fewer if the caller hangs up.

        Raises:
            OSError: too many bytes were announced, or they came too slowly; pynetdicom closes the connection.
        """
        if nr_bytes > MAX_PDU_BYTES:
            log.warning("a connection was closed: it announced a PDU that is too long")
            msg = "the announced PDU is too long"
            raise OSError(msg)
        # A PDU is read by two calls: that for its first six bytes starts the clock.
        if nr_bytes == _HEAD_BYTES:
            self._deadline = time.monotonic() + (PDU_S if self._assoc.is_established else REQUEST_S)
        connection = cast("socket.socket", self.socket)
        content = bytearray()
        while len(content) < nr_bytes:
            connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
            piece = connection.recv(min(nr_bytes - len(content), 1 << 16))
            if not piece:
                break
            content += piece
        connection.settimeout(None)
        return content

    def _shutdown_socket(self) -> None:
        # pynetdicom leaves a socket open that its caller has closed.
        connection = cast("socket.socket", self.socket)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


@dataclass(slots=True, eq=False)
class _Caller:
    """A connection and, once there is one, its association."""

    address: str
    connection: socket.socket
    association: Association | None = None

    @property
    def speaks(self) -> bool:
        """Whether an association was agreed on."""
        return self.association is not None and self.association.is_established

    @property
    def gone(self) -> bool:
        """Whether its connection is closed and its thread has ended."""
        if self.association is None:
            return self.connection.fileno() < 0
        return self.association.ident is not None and not self.association.is_alive()

    def hang_up(self) -> None:
        """Close the connection; its threads then end by themselves."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        if self.association is None:
            self.connection.close()


class _Handler(RequestHandler):
    """Completes the TLS handshake in the caller's own thread, and makes the association."""

    server: "_Server"

    def setup(self) -> None:
        """Do the handshake, if there is one.

        Raises:
            OSError: it failed, or took too long.
        """
        if self.server.tls is not None:
            self.request.settimeout(REQUEST_S)
            plain = self.request
            self.request = self.server.tls.wrap_socket(plain, server_side=True)
            self.request.settimeout(None)
            self.server.replace(plain, self.request)

    def _create_association(self) -> Association:
        association = super()._create_association()
        # pynetdicom has no other place for a socket of one's own on this side of an association.
        association.dul.socket.__class__ = _BoundedSocket
        self.server.note(self.request, association)
        return association


class _Server(ThreadedAssociationServer):
    """Lets each sender in up to its bound; where that is reached, who has said nothing for longest makes room."""

    daemon_threads = True

    def __init__(self, ours: AE, address: tuple[str, int], handlers: list[Any], most: int, tls: Any) -> None:  # noqa: ANN401
        self.tls = tls
        self._most = most
        self._callers: list[_Caller] = []
        self._changing = threading.Lock()
        contexts, title = ours.supported_contexts, ours.ae_title
        super().__init__(ours, address, title, contexts, evt_handlers=handlers, request_handler=_Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401 - as socketserver has it
        """Return whether a connection is taken."""
        caller = _Caller(str(client_address[0]), request)
        with self._changing:
            self._callers = [other for other in self._callers if not other.gone]
            ours = [other for other in self._callers if other.address == caller.address]
            taken = self._room(ours, self._most) and self._room(self._callers, self._most * _SENDERS)
            if taken:
                self._callers.append(caller)
        if not taken:
            log.warning("a connection was refused: its sender, or all together, have as many as they may")
        return taken

    def _room(self, callers: Sequence[_Caller], most: int) -> bool:
        """Return whether there is room for one more; the eldest that does not speak is hung up on for it."""
        if len(callers) < most:
            return True
        silent = next((caller for caller in callers if not caller.speaks), None)
        if silent is None:
            return False
        self._callers.remove(silent)
        silent.hang_up()
        return True

    def replace(self, plain: socket.socket, encrypted: socket.socket) -> None:
        """Take note that a connection has become an encrypted one."""
        with self._changing:
            for caller in self._callers:
                if caller.connection is plain:
                    caller.connection = encrypted

    def note(self, connection: socket.socket, association: Association) -> None:
        """Take note of a connection's association."""
        with self._changing:
            for caller in self._callers:
                if caller.connection is connection:
                    caller.association = association

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as socketserver has it
        """Log that a connection failed; Python would print what it holds."""
        log.warning("a connection failed before its association")


def listen(
    ours: AE,
    address: tuple[str, int],
    handlers: Sequence[tuple[Any, ...]],
    *,
    most: int,
    tls: Any = None,  # noqa: ANN401 - an ssl.SSLContext
) -> None:
    """Listen in threads of this process until the entity's `shutdown` is called.

    Args:
        ours: application entity with its contexts and titles.
        address: host and port.
        handlers: of events, as pynetdicom takes them.
        most: connections that one sender, by its address, may have at once.
        tls: context of the server's side; None for plain connections.

    Raises:
        OSError: the port is taken.
    """
    # The server counts: pynetdicom would count connections that say nothing, and refuse those that do.
    ours.maximum_associations = most * _SENDERS + 1
    ours.acse_timeout = REQUEST_S
    server = _Server(ours, address, list(handlers), most, tls)
    ours._servers.append(server)  # noqa: SLF001 - as AE.start_server does; shutdown() of either looks there
    threading.Thread(target=server.serve_forever, name="dicom listener", daemon=True).start()
