"""uvicorn around the application: where it may listen, what it says when it is up."""

import socket
import sys
from contextlib import suppress

import uvicorn

from service import __version__
from service.app import LOOPBACK_HOSTS, create_app
from service.errors import SettingsError
from service.observability.log import configure_logging
from service.schemas import RESEARCH_USE_ONLY
from service.settings import Settings


def run_server(settings: Settings, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        SettingsError: an address beyond this machine without a proxy that authenticates.
    """
    if (
        f"[{host}]" not in LOOPBACK_HOSTS
        and host not in LOOPBACK_HOSTS
        and not (settings.behind_proxy or settings.keys_file)
    ):
        msg = (
            f"{host} is reachable from other machines. Make keys (calibrant keys add OWNER) and set CALIBRANT_KEYS_FILE, "
            "put a proxy that authenticates in front and say so with --behind-proxy, or listen on 127.0.0.1."
        )
        raise SettingsError(msg)
    configure_logging()
    # No access log: paths and query strings are what the user sent.
    config = uvicorn.Config(create_app(settings), host, port, log_config=None, access_log=False, server_header=False)
    server = _AnnouncingServer(config, settings)
    # uvicorn has exit codes of its own; ours for what keeps a server from starting is 1.
    with suppress(SystemExit):
        server.run()
    if not server.started:
        sys.exit(1)


class _AnnouncingServer(uvicorn.Server):
    """Says where it listens as soon as it does: with port 0 nobody else knows."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        sys.stdout.write(
            f"Calibrant {__version__} is ready at {address} (routes: {address}/docs)\n"
            f"  device {self._settings.device}; state in {self._settings.state_dir}; no telemetry\n"
            f"  {RESEARCH_USE_ONLY}\n"
        )
        sys.stdout.flush()
