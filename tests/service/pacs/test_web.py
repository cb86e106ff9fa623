import http.server
import io
import json
import time
import zipfile
from pathlib import Path

import pytest
from dicomweb_client.api import DICOMwebClient
from orthanc import Orthanc
from pydicom import dcmread

from service.errors import CalibrantError, PacsBadResponse, PacsBusy, PacsRefused, PacsUnreachable, SeriesNotFound
from service.pacs.config import Pacs, Secret
from service.pacs.web import DicomWeb, write_zip
from tests.service.pacs.conftest import Stub
from tests.service.pacs.contract import SERIES, STUDY, PeerContract


def connect(url: str, **options: object) -> DicomWeb:
    """Return a connection."""
    return DicomWeb(Pacs.model_validate({"url": url} | options))


@pytest.mark.pacs
class TestDicomWeb(PeerContract):
    """A real Orthanc over STOW-RS, QIDO-RS and WADO-RS."""

    @pytest.fixture
    def peer(self, orthanc: Orthanc) -> DicomWeb:
        """Return a connection to the empty Orthanc."""
        return connect(orthanc.dicomweb)


@pytest.mark.pacs
def test_an_independent_client_sees_what_was_stored(orthanc: Orthanc, series_files: list[Path]) -> None:
    """The files come back byte for byte, and dicomweb-client finds the same instances."""
    with connect(orthanc.dicomweb) as pacs:
        for path in series_files:
            pacs.store(path)
        (series,) = pacs.find_series(series=SERIES)
        instances = pacs.find_instances(STUDY, SERIES)
        files = list(pacs.fetch_series(STUDY, SERIES))
        assert pacs.fetch_instance(STUDY, SERIES, "1.2.3.1") == series_files[0].read_bytes()

    assert series.instances == 6
    assert sorted(files) == sorted(path.read_bytes() for path in series_files)
    independent = DICOMwebClient(orthanc.dicomweb).retrieve_series(STUDY, SERIES)
    assert sorted(dataset.SOPInstanceUID for dataset in independent) == instances


@pytest.mark.pacs
def test_a_real_pacs_says_what_it_does_not_have(orthanc: Orthanc, tmp_path: Path) -> None:
    """An unknown series and a file that is not DICOM are refused for good."""
    (tmp_path / "garbage").write_bytes(b"garbage" * 99)
    with connect(orthanc.dicomweb) as pacs:
        assert pacs.find_series(study="1.2.99") == []
        with pytest.raises(PacsRefused, match="404"):
            list(pacs.fetch_series("1.2.99", "1.2.98"))
        with pytest.raises(PacsRefused, match="400"):
            pacs.store(tmp_path / "garbage")


@pytest.mark.parametrize(
    ("status", "content", "media_type", "error"),
    [
        (503, b"", "text/plain", PacsBusy),
        (500, b"<html>", "text/html", PacsBusy),
        (429, b"", "text/plain", PacsBusy),
        (408, b"", "text/plain", PacsBusy),
        (401, b"", "text/plain", PacsRefused),
        (404, b"[]", "application/dicom+json", PacsRefused),
        (302, b"", "text/plain", PacsBadResponse),
        (200, b"<html>Login</html>", "text/html", PacsBadResponse),
        (200, b"[{]", "application/dicom+json", PacsBadResponse),
        (200, b'"text"', "application/json", PacsBadResponse),
        (200, b"\xff\xfe", "application/json", PacsBadResponse),
    ],
)
def test_bad_answers_to_a_query_have_names(
    stub: Stub, status: int, content: bytes, media_type: str, error: type[CalibrantError]
) -> None:
    """Errors distinguish answers that may succeed later, that never will, and that are not from a PACS."""
    stub.says(status, content, media_type)
    with connect(stub.url) as pacs, pytest.raises(error) as caught:
        pacs.find_series(series=SERIES)
    assert caught.value.status == 502
    assert SERIES not in caught.value.detail


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (200, 0xA700, PacsBusy),
        (202, 0xA701, PacsBusy),
        (409, 0xA701, PacsBusy),
        (409, 0xA900, PacsRefused),
        (202, 0xC000, PacsRefused),
        (400, 0x0122, PacsRefused),
    ],
)
def test_the_reason_of_a_failed_store_decides(
    stub: Stub, series_files: list[Path], status: int, reason: int, error: type[CalibrantError]
) -> None:
    """FailedSOPSequence is read with every HTTP status, even with success."""
    failed = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [reason]}}
    stub.says(status, json.dumps({"00081198": {"vr": "SQ", "Value": [failed]}}).encode())
    with connect(stub.url) as pacs, pytest.raises(error, match=f"0x{reason:04X}"):
        pacs.store(series_files[0])


def test_html_is_no_confirmation_of_a_store(stub: Stub, series_files: list[Path]) -> None:
    """A proxy's login page with status 200 does not count as stored."""
    stub.says(200, b"<html>", "text/html")
    with connect(stub.url) as pacs, pytest.raises(PacsBadResponse):
        pacs.store(series_files[0])
    assert stub.bodies[0].count(series_files[0].read_bytes()) == 1


def test_a_connection_that_breaks_is_unreachable(stub: Stub) -> None:
    """A connection that is refused, reset in the middle of a body or silent for too long is unreachable."""
    with connect("http://127.0.0.1:9/dicom-web") as pacs, pytest.raises(PacsUnreachable):
        pacs.find_series(series=SERIES)

    def reset(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/dicom+json")
        request.send_header("Content-Length", "99999")
        request.end_headers()
        request.wfile.write(b"[")

    stub.does(reset)
    with connect(stub.url) as pacs, pytest.raises(PacsUnreachable):
        pacs.find_series(series=SERIES)

    stub.answers[:] = [lambda _: time.sleep(1)]
    with connect(stub.url, timeout_s=0.2) as pacs, pytest.raises(PacsUnreachable):
        pacs.find_series(series=SERIES)


def test_an_answer_that_drips_is_ended(stub: Stub) -> None:
    """Bytes that each arrive in time but take too long altogether hit the deadline."""

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/dicom+json")
        request.end_headers()
        for _ in range(100):
            request.wfile.write(b" ")
            time.sleep(0.02)

    stub.does(drip)
    started = time.monotonic()
    with connect(stub.url, deadline_s=0.2) as pacs, pytest.raises(PacsUnreachable, match="longer"):
        pacs.find_series(series=SERIES)
    assert time.monotonic() - started < 1.5


def test_pages_are_asked_for_until_one_is_not_full(stub: Stub) -> None:
    """Servers limit the number of matches per answer."""
    full = [{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(1000)]
    stub.says(200, json.dumps(full).encode()).says(200, json.dumps([{"00080018": {"Value": ["1.3"]}}]).encode())
    with connect(stub.url) as pacs:
        assert len(pacs.find_instances(STUDY, SERIES)) == 1001
    assert "offset=1000" in stub.asked[1]


def test_a_server_without_pages_is_not_asked_forever(stub: Stub) -> None:
    """If the same page comes again, there are no more pages."""
    full = [{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(1000)]
    stub.says(200, json.dumps(full).encode())
    with connect(stub.url) as pacs:
        assert len(pacs.find_instances(STUDY, SERIES)) == 1000
    assert len(stub.asked) == 2


@pytest.mark.parametrize("uid", ["../../system", "1.2/3", "", "1.2?x=y", "1" * 65, "a"])
def test_only_uids_stand_in_addresses(stub: Stub, uid: str) -> None:
    """Anything but a UID is refused before a request is sent."""
    with connect(stub.url) as pacs, pytest.raises(SeriesNotFound):
        pacs.find_series(series=uid)
    assert stub.asked == []


def test_credentials_come_from_the_configuration(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Basic and bearer credentials are sent; proxies of the environment and .netrc are ignored."""
    monkeypatch.setenv("PACS_PASSWORD", "open sesame")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    stub.says(200, b"[]")
    with connect(stub.url, user="ali", password=Secret(env="PACS_PASSWORD")) as pacs:
        pacs.find_series(series=SERIES)
    with connect(stub.url, token=Secret(env="PACS_PASSWORD")) as pacs:
        pacs.find_series(series=SERIES)
    assert [headers["Authorization"] for headers in stub.headers] == [
        "Basic YWxpOm9wZW4gc2VzYW1l",
        "Bearer open sesame",
    ]


def test_a_zip_has_neutral_names(series_files: list[Path]) -> None:
    """Files are numbered, and their content is unchanged."""
    packed = io.BytesIO()
    assert write_zip((path.read_bytes() for path in series_files), packed) == 6
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist()[0] == "000001.dcm"
        assert dcmread(io.BytesIO(archive.read("000001.dcm"))).SOPInstanceUID == "1.2.3.1"
