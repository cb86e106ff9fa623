"""`calibrant serve`: checks address and devices, runs the application in uvicorn and prints where it listens."""

import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Final

import uvicorn

from service import __version__
from service.api.connection import bounded
from service.app import LOOPBACK_HOSTS, create_app
from service.errors import SettingsError
from service.observability.log import configure_logging
from service.schemas import RESEARCH_USE_ONLY
from service.settings import Settings
from service.storage.scratch import remove_scratch

LAST_ANSWERS_S: Final = 3
"""Seconds that running requests have when the service is asked to end; those that wait for a job could take for ever."""


def run_server(settings: Settings, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        SettingsError: other machines could reach the address without a key, or the port is taken.
        DeviceUnavailable: none of the devices computes.
    """
    reachable = f"[{host}]" not in LOOPBACK_HOSTS and host not in LOOPBACK_HOSTS and not settings.behind_proxy
    if reachable and settings.monailabel_secret:
        msg = (
            f"{host} is reachable from other machines, and every proxy in between logs a secret in a path. "
            "Remove CALIBRANT_MONAILABEL_SECRET, listen on 127.0.0.1, or put a proxy in front and say so with --behind-proxy."
        )
        raise SettingsError(msg)
    if reachable and not settings.keys_file:
        msg = (
            f"{host} is reachable from other machines. Make keys (calibrant keys add OWNER) and set CALIBRANT_KEYS_FILE, "
            "put a proxy that authenticates in front and say so with --behind-proxy, or listen on 127.0.0.1."
        )
        raise SettingsError(msg)
    configure_logging()
    _allow_files(settings.max_connections)
    app = create_app(settings)
    app.state.executor.start()
    app.state.executor.await_verdict()  # a service without its GPU would only fail later, job by job
    # No access log: paths and query strings hold what the user sent.
    config = uvicorn.Config(
        app,
        host,
        port,
        http=bounded(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # service.api.forwarded reads them
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    server = _AnnouncingServer(config, settings, app.state.executor.names)
    # uvicorn has its own exit codes; here, a server that does not start exits with 1.
    with suppress(SystemExit):
        server.run()
    if server.refusal is not None:
        msg = f"Port {port} of {host} cannot be listened on ({os.strerror(server.refusal.errno or 0)}). Stop what uses it, or choose another with --port."
        raise SettingsError(msg)
    if not server.started:
        sys.exit(1)


def _allow_files(connections: int) -> None:
    """Let this process hold as many files as the connections need, if the system's hard limit allows it."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 1024
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
        )


class _AnnouncingServer(uvicorn.Server):
    """Prints its address as soon as it listens; with port 0 it is not known before."""

    def __init__(self, config: uvicorn.Config, settings: Settings, devices: tuple[str, ...]) -> None:
        super().__init__(config)
        self._settings = settings
        self._devices = ", ".join(devices)
        self.refusal: OSError | None = None
        """Why it cannot listen; uvicorn only logs it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        remove_scratch()  # uvicorn then ends the process by the signal that it got, and nothing else runs at its end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit as error:
            self.refusal = error.__context__ if isinstance(error.__context__, OSError) else None
            raise
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        sys.stdout.write(
            f"Calibrant {__version__} listens at {address} (routes: {address}/docs)\n"
            f"  devices: {self._devices}; state in {self._settings.state_dir}; no telemetry\n"
            f"  {self._settings.retention_text}\n"
            f"  {RESEARCH_USE_ONLY}\n"
        )
        sys.stdout.flush()
