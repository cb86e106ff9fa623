import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from orthanc import Orthanc, free_port
from pynetdicom import AE, evt

from service.errors import CalibrantError, PacsBadResponse, PacsBusy, PacsRefused, PacsUnreachable
from service.pacs.config import Pacs, Receiver, ServerTls, Tls
from service.pacs.dimse import VERIFICATION, DimsePeer
from service.pacs.receiver import start_receiver
from tests.service.pacs.conftest import MOVE_PORT
from tests.service.pacs.contract import SERIES, STUDY, PeerContract

# pynetdicom leaves the socket of a failed association to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """Collect these sockets before the next test."""
    yield
    gc.collect()


def connect(port: int, aet: str = "ORTHANC", **options: object) -> DimsePeer:
    """Return a connection."""
    dimse = {"host": "127.0.0.1", "port": port, "aet": aet, "move_port": MOVE_PORT, "move_host": "127.0.0.1"}
    return DimsePeer(Pacs.model_validate({"dimse": dimse | options, "timeout_s": 5}))


@pytest.mark.pacs
class TestDimsePeer(PeerContract):
    """A real Orthanc over C-STORE, C-FIND and C-MOVE."""

    @pytest.fixture
    def peer(self, orthanc: Orthanc) -> DimsePeer:
        """Return a connection to the empty Orthanc."""
        return connect(orthanc.dicom_port)


@pytest.mark.pacs
def test_orthanc_sees_what_was_stored(orthanc: Orthanc, series_files: list[Path]) -> None:
    """Orthanc's own interface counts the instances; it answers C-ECHO and accepts CT images."""
    with connect(orthanc.dicom_port) as pacs:
        pacs.echo()
        for path in series_files:
            pacs.store(path)
        (series,) = pacs.find_series(series=SERIES)
        assert pacs.accepts(CT)

    assert series.instances == 6
    assert len(orthanc.get("/instances")) == 6


@pytest.mark.pacs
def test_a_series_that_is_not_there_is_refused(orthanc: Orthanc) -> None:
    """The status of the C-MOVE becomes PacsRefused."""
    with pytest.raises(PacsRefused, match="0x"):
        list(connect(orthanc.dicom_port).fetch_series("1.2.99", "1.2.98"))


def test_a_closed_port_is_unreachable() -> None:
    """A PACS that does not run is worth a retry."""
    with pytest.raises(PacsUnreachable):
        connect(free_port()).echo()


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[int]:
    """Yield the port of a PACS that answers every C-STORE with one status."""
    pacs = AE(ae_title="OTHER")
    pacs.require_called_aet = True
    pacs.add_supported_context(CT)
    port = free_port()
    pacs.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: request.param)])
    yield port
    pacs.shutdown()


@pytest.mark.parametrize(
    ("other", "error"),
    [(0xA700, PacsBusy), (0xA701, PacsBusy), (0xA900, PacsRefused), (0xC000, PacsRefused), (0x0122, PacsRefused)],
    indirect=["other"],
)
def test_the_status_of_a_store_decides(other: int, error: type[CalibrantError], series_files: list[Path]) -> None:
    """Only "out of resources" is worth a retry."""
    with pytest.raises(error, match="0x"):
        connect(other, "OTHER").store(series_files[0])


@pytest.mark.parametrize("other", [0xB000], indirect=True)
def test_a_warning_is_a_success(other: int, series_files: list[Path]) -> None:
    """The PACS has stored the object with changes (PS3.4 table B.2-1)."""
    connect(other, "OTHER").store(series_files[0])


@pytest.mark.parametrize("other", [0x0000], indirect=True)
def test_a_rejected_association_says_why(other: int) -> None:
    """An unsupported SOP class and a wrong AE title give different messages."""
    with pytest.raises(PacsRefused, match="kind of object"):
        connect(other, "OTHER").echo()
    assert not connect(other, "OTHER").accepts(VERIFICATION)
    with pytest.raises(PacsRefused, match="AE title"):
        connect(other, "WRONG").echo()


def test_one_object_is_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PACS that sends more than the requested object gives PacsBadResponse."""
    monkeypatch.setattr(DimsePeer, "_move", lambda *_: iter([b"1", b"2"]))
    with pytest.raises(PacsBadResponse, match="2 objects"):
        connect(free_port()).fetch_instance(STUDY, SERIES, "1.2.3")


def test_associations_may_be_encrypted(
    tmp_path: Path, certificate: tuple[Path, Path], series_files: list[Path]
) -> None:
    """With mutual TLS, a peer that is not trusted gets no association."""
    port = free_port()
    server = ServerTls(certificate_file=certificate[0], key_file=certificate[1], client_ca_file=certificate[0])
    receiver = start_receiver(
        Receiver(port=port, allowed=["CALIBRANT"], tls=server, least_free_bytes=1), tmp_path / "received"
    )
    mutual = Tls(ca_file=certificate[0], certificate_file=certificate[0], key_file=certificate[1])
    try:
        pacs = connect(port, "CALIBRANT", tls=mutual)
        pacs.echo()
        pacs.store(series_files[0])
        for stranger in (Tls(ca_file=certificate[0]), Tls(), None):
            with pytest.raises(PacsUnreachable):
                connect(port, "CALIBRANT", tls=stranger).echo()
    finally:
        receiver.shutdown()
    (kept,) = (tmp_path / "received").glob("*/*.dcm")
    assert kept.stat().st_size > 0


def test_an_aborted_association_is_unreachable() -> None:
    """An association that is lost in the middle gives no status."""
    pacs = AE(ae_title="SILENT")
    pacs.add_supported_context(VERIFICATION)
    port = free_port()

    def hang(event: evt.Event) -> int:
        event.assoc.abort()
        time.sleep(0.1)
        return 0

    pacs.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_ECHO, hang)])
    try:
        with pytest.raises(PacsUnreachable, match="closed"):
            connect(port, "SILENT").echo()
    finally:
        pacs.shutdown()
