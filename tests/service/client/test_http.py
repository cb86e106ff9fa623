import inspect
import json
import queue
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client.async_http import AsyncClient
from service.client.calls import Order
from service.client.http import Client
from service.errors import ClientError, ServerProblem, ServerUnreachable
from tests.service.client.contract import Ask, ClientContract, Handler


class AskClient(Ask):
    """Calls the synchronous client."""

    def __call__(
        self, handler: Handler, method: str, *arguments: object, patience_s: float = 0, **options: object
    ) -> Any:  # noqa: ANN401 - of any method
        """Return what the method returns; what it yields comes back as a list."""

        def handle(request: httpx.Request) -> httpx.Response:
            request.read()
            return handler(request)

        with Client("http://server", patience_s=patience_s) as client:
            client._http.close()
            client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(handle))
            client._retry.met = True
            outcome = getattr(client, method)(*arguments, **options)
            return list(outcome) if inspect.isgenerator(outcome) else outcome


class TestClient(ClientContract):
    """The synchronous client."""

    @pytest.fixture
    def ask(self, paused: list[float]) -> Ask:
        """Return the function that calls the client."""
        return AskClient(paused)


@pytest.fixture
def real(hippocampus: Path) -> Path:
    """Return a real scan."""
    return hippocampus / "imagesTr" / "hippocampus_003.nii.gz"


def test_nobody_listens() -> None:
    """A closed port is ServerUnreachable at once, not an httpx exception."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServerUnreachable, match="Is calibrant serve running"):
        client.models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "nonsense", "http://[::1", "http://host:port"])
def test_an_address_that_is_none_is_said(url: str) -> None:
    """An address without http:// or with a typo is a CalibrantError, not an httpx exception."""
    with pytest.raises(ClientError), Client(url) as client:
        client.models()


def test_help_shows_a_default_with_a_name() -> None:
    """The default of `show` is a function with a name, in both clients."""
    for client in (Client, AsyncClient):
        for method in (client.segment, client.wait):
            assert inspect.signature(method).parameters["show"].default.__name__ == "no_show"


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_without_http_is_refused_at_construction(client: type[Client] | type[AsyncClient]) -> None:
    """The mistake is told before the first request."""
    with pytest.raises(ServerUnreachable, match="needs http:// or https://"):
        client("localhost:8000")


def test_a_closed_client_holds_no_connection() -> None:
    """Leaving the context closes the connection."""
    with Client("http://server") as client:
        assert not client._http.is_closed
    assert client._http.is_closed


@pytest.mark.parametrize(
    ("given", "variable", "sent"), [("a", "b", "Bearer a"), (None, "b", "Bearer b"), (None, "", None)]
)
def test_a_key_goes_with_every_request(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str, sent: str | None
) -> None:
    """A given key overrides CALIBRANT_KEY; without either, no header is sent."""
    monkeypatch.setenv("CALIBRANT_KEY", variable)
    with Client("http://server", key=given) as client:
        assert client._http.headers.get("Authorization") == sent


def test_the_asynchronous_client_has_the_same_methods() -> None:
    """Both clients have the same methods with the same arguments."""

    def methods(client_class: type) -> dict[str, list[str]]:
        public = {name: function for name, function in vars(client_class).items() if not name.startswith("_")}
        return {
            name.removeprefix("a") if name == "aclose" else name: list(inspect.signature(function).parameters)
            for name, function in public.items()
        }

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) == 12


def test_the_installed_models_of_a_real_server(server_url: str) -> None:
    """A running service lists its models with their identities, and names its default."""
    with Client(server_url) as client:
        models = client.models()

    default = next(model for model in models.models if model.name == models.default)
    assert default.ready
    assert default.identity is not None
    assert default.identity.startswith(f"{models.default}@")


def test_a_real_server_refuses_a_file_that_is_no_scan(server_url: str, scan: Path) -> None:
    """The service's problem document is raised, and repeats nothing of the file."""
    with Client(server_url) as client, pytest.raises(ServerProblem, match="not NIfTI") as caught:
        client.segment(scan)

    assert (caught.value.status, caught.value.problem_type) == (422, "/problems/unrecognised-format")


def test_a_real_server_refuses_an_unknown_model(server_url: str, scan: Path) -> None:
    """An unknown model is a 404, before the scan is examined."""
    with Client(server_url) as client, pytest.raises(ServerProblem, match="not installed") as caught:
        client.segment(scan, "nobody")

    assert caught.value.status == 404


def test_a_job_of_a_real_server_from_its_scan_to_its_end(server_url: str, real: Path) -> None:
    """A scan is uploaded once and submitted twice with one key: one job, which is followed, listed, fetched and erased."""
    with Client(server_url) as client:
        scan = client.upload(real)
        jobs = {client.submit(Order(scan, idempotency_key="test-http")).id for _ in range(2)}
        (identifier,) = jobs
        *_, last = client.events(identifier)
        result = client.fetch(last)

        assert last.state == "succeeded"
        assert result.job.scan == scan.id
        assert result.summary.model == last.model
        assert identifier in {job.id for job in client.list("succeeded")}
        client.delete(identifier)
        with pytest.raises(ServerProblem) as caught:
            client.find(identifier)
        assert caught.value.problem_type == "/problems/job-not-found"


def test_a_server_that_comes_back_is_waited_for(make_job: Callable[..., dict[str, Any]]) -> None:
    """The client waits for a server that has answered before and listens again a second later."""
    body = json.dumps(make_job("queued")).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    def answer_once(port: int) -> None:
        with HTTPServer(("127.0.0.1", port), Handler) as server:
            ports.put(server.server_port)
            server.handle_request()

    ports: queue.Queue[int] = queue.Queue()
    first = threading.Thread(target=answer_once, args=(0,))
    first.start()
    port = ports.get()
    with Client(f"http://127.0.0.1:{port}", patience_s=20) as client:
        assert client.find("7f").state == "queued"
        first.join()
        second = threading.Timer(1.0, answer_once, (port,))
        second.start()
        assert client.find("7f").state == "queued"
        second.join()
