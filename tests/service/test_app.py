import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service import __version__
from service.app import create_app
from service.errors import SettingsError
from service.settings import Settings
from service.storage.keys import add_key

Ask = Callable[..., httpx.Response]

OPERATIONS = {
    ("post", "/v1/segmentations"): "createSegmentation",
    ("get", "/v1/segmentations"): "listSegmentations",
    ("get", "/v1/segmentations/{job_id}"): "getSegmentation",
    ("delete", "/v1/segmentations/{job_id}"): "deleteSegmentation",
    ("post", "/v1/segmentations/{job_id}/cancel"): "cancelSegmentation",
    ("get", "/v1/segmentations/{job_id}/events"): "streamEvents",
    ("get", "/v1/segmentations/{job_id}/mask"): "getMask",
    ("get", "/v1/segmentations/{job_id}/confidence"): "getConfidence",
    ("get", "/v1/segmentations/{job_id}/summary"): "getSummary",
    ("post", "/v1/scans"): "uploadScan",
    ("get", "/v1/scans/{scan_id}"): "getScan",
    ("delete", "/v1/scans/{scan_id}"): "deleteScan",
    ("get", "/v1/models"): "listModels",
    ("get", "/v1/models/{name}"): "getModel",
    ("get", "/v2/health/live"): "isLive",
    ("get", "/v2/health/ready"): "isReady",
}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """Return the application of a fresh state directory, not started."""
    return create_app(Settings(state_dir=tmp_path / "state"))


def test_operations_keep_their_names(app: FastAPI) -> None:
    """Generated clients use the operation ids: routes may be added, but none renamed."""
    operations = {
        (method, path): operation["operationId"]
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }

    assert OPERATIONS.items() <= operations.items()
    assert len(set(operations.values())) == len(operations)


def test_the_document_says_what_the_service_is(app: FastAPI) -> None:
    """The document gives title, version and the research-use notice; a scan is sent as bytes or in a form."""
    document = app.openapi()

    assert document["info"]["title"] == "Calibrant"
    assert document["info"]["version"] == __version__
    assert "research use only" in document["info"]["description"]
    assert list(document["paths"]["/v1/segmentations"]["post"]["requestBody"]["content"]) == [
        "application/octet-stream",
        "multipart/form-data",
    ]


def test_the_page_of_the_routes_needs_no_internet(app: FastAPI, ask: Ask) -> None:
    """The service itself serves every script and style of /docs."""
    page = ask(app, "GET", "/docs").text
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)

    assert loaded
    assert [path for path in loaded if not path.startswith("/")] == []
    assert [ask(app, "GET", path).status_code for path in loaded] == [200] * len(loaded)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_this_machine_is_answered(app: FastAPI, ask: Ask, host: str) -> None:
    """Requests to loopback names and addresses are served."""
    assert ask(app, "GET", "/v2/health/live", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "127.0.0.1.example.org",
        "localhost.example.org:8000",
        "10.0.0.1",
        "example.org@localhost",
        "[::1].example.org",
        "",
    ],
)
def test_another_name_is_not_answered(app: FastAPI, ask: Ask, host: str) -> None:
    """A web page that rebinds its own name to this machine gets a 400."""
    answer = ask(app, "GET", "/v2/health/live", headers={"Host": host})

    assert answer.status_code == 400
    assert "live" not in answer.text


def test_a_refused_name_is_a_problem_document_too(app: FastAPI, ask: Ask) -> None:
    """This refusal is a problem document, too (RFC 9457)."""
    answer = ask(app, "GET", "/v1/models", headers={"Host": "example.org"})

    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 400


def test_behind_a_proxy_any_name_is_answered(tmp_path: Path, ask: Ask) -> None:
    """Behind a proxy, the proxy decides which names are served."""
    app = create_app(Settings(state_dir=tmp_path, behind_proxy=True))

    assert ask(app, "GET", "/v2/health/live", headers={"Host": "example.org"}).status_code == 200


def test_with_keys_any_name_is_answered(tmp_path: Path, ask: Ask) -> None:
    """With keys every name is served, because a rebinding page has no key."""
    add_key(tmp_path / "keys.json", "lab", admin=False)
    app = create_app(Settings(state_dir=tmp_path / "state", keys_file=tmp_path / "keys.json"))

    assert ask(app, "GET", "/v2/health/live", headers={"Host": "scanner.hospital.example"}).status_code == 200


def test_no_answer_allows_another_origin(app: FastAPI, ask: Ask) -> None:
    """No CORS header is sent, so that pages of other sites cannot read answers."""
    answer = ask(app, "GET", "/v2/health/live", headers={"Origin": "https://example.org"})

    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_two_applications_do_not_share_a_state_directory(app: FastAPI, tmp_path: Path) -> None:
    """The second application is refused, and the message names the setting."""
    assert app.title == "Calibrant"

    with pytest.raises(SettingsError, match="CALIBRANT_STATE_DIR"):
        create_app(Settings(state_dir=tmp_path / "state"))


def test_a_missing_bundle_folder_is_found_before_the_server_starts(tmp_path: Path) -> None:
    """A wrong CALIBRANT_BUNDLE_DIR is one sentence on the command line, not a traceback."""
    with pytest.raises(SettingsError, match="CALIBRANT_BUNDLE_DIR"):
        create_app(Settings(state_dir=tmp_path / "state", bundle_dir=tmp_path / "missing"))
