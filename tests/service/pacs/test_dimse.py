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

# pynetdicom leaves the socket of a failed association to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STUDY, SERIES, CT = "1.2.4", "1.2.5", "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """Collect those sockets before the next test begins."""
    yield
    gc.collect()


def connect(port: int, aet: str = "ORTHANC", **options: object) -> DimsePeer:
    """Return a connection."""
    dimse = {"host": "127.0.0.1", "port": port, "aet": aet, "move_port": MOVE_PORT, "move_host": "127.0.0.1"}
    return DimsePeer(Pacs.model_validate({"dimse": dimse | options, "timeout_s": 5}))


@pytest.mark.pacs
def test_what_is_stored_is_found_and_fetched(orthanc: Orthanc, series_files: list[Path]) -> None:
    """C-ECHO, C-STORE, C-FIND and C-MOVE with a real Orthanc; its own interface sees the same."""
    with connect(orthanc.dicom_port) as pacs:
        pacs.echo()
        assert pacs.find_series(series=SERIES) == []
        for path in series_files:
            pacs.store(path)
        (found,) = pacs.find_series(series=SERIES)
        files = list(pacs.fetch_series(STUDY, SERIES))
        assert pacs.holds(STUDY, SERIES, "1.2.3.1")
        assert not pacs.holds(STUDY, SERIES, "1.2.3.99")
        assert pacs.fetch_instance(STUDY, SERIES, "1.2.3.2") in files
        assert pacs.find_instances(STUDY, SERIES) == [f"1.2.3.{k + 1}" for k in range(6)]
        assert pacs.accepts(CT)

    assert (found.study, found.uid, found.modality, found.instances) == (STUDY, SERIES, "CT", 6)
    assert len(files) == 6
    assert len(orthanc.get("/instances")) == 6


@pytest.mark.pacs
def test_a_series_that_is_not_there_is_refused(orthanc: Orthanc) -> None:
    """The status of the C-MOVE says so."""
    with pytest.raises(PacsRefused, match="0x"):
        list(connect(orthanc.dicom_port).fetch_series("1.2.99", "1.2.98"))


def test_nobody_there_is_unreachable() -> None:
    """It is tried again."""
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
    """Out of resources may succeed later, the rest never will."""
    with pytest.raises(error, match="0x"):
        connect(other, "OTHER").store(series_files[0])


@pytest.mark.parametrize("other", [0xB000], indirect=True)
def test_a_warning_is_a_success(other: int, series_files: list[Path]) -> None:
    """The PACS has it, with changes (PS3.4 table B.2-1)."""
    connect(other, "OTHER").store(series_files[0])


@pytest.mark.parametrize("other", [0x0000], indirect=True)
def test_what_the_pacs_does_not_take_is_told(other: int) -> None:
    """A kind of object that it does not know, and a name that is not its own."""
    with pytest.raises(PacsRefused, match="kind of object"):
        connect(other, "OTHER").echo()
    assert not connect(other, "OTHER").accepts(VERIFICATION)
    with pytest.raises(PacsRefused, match="AE title"):
        connect(other, "WRONG").echo()


def test_one_object_is_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PACS that moves something else than what was asked for."""
    monkeypatch.setattr(DimsePeer, "_move", lambda *_: iter([b"1", b"2"]))
    with pytest.raises(PacsBadResponse, match="2 objects"):
        connect(free_port()).fetch_instance(STUDY, SERIES, "1.2.3")


def test_associations_may_be_encrypted(
    tmp_path: Path, certificate: tuple[Path, Path], series_files: list[Path]
) -> None:
    """TLS in both directions: who is not trusted gets no association."""
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


def test_a_pacs_that_says_nothing_is_given_up() -> None:
    """An association that is lost in the middle has no status."""
    pacs = AE(ae_title="SILENT")
    pacs.add_supported_context(VERIFICATION)
    port = free_port()

    def hang(event: evt.Event) -> int:
        event.assoc.abort()
        time.sleep(0.1)
        return 0

    pacs.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_ECHO, hang)])
    try:
        with pytest.raises(PacsUnreachable, match="middle"):
            connect(port, "SILENT").echo()
    finally:
        pacs.shutdown()
