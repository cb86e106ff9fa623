"""Every setting of the service: environment variable, unit, default."""

import difflib
import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError

_PREFIX: Final = "CALIBRANT_"

_OF_OTHERS: Final = frozenset(
    {"CALIBRANT_DATA", "CALIBRANT_KEY", "CALIBRANT_PORT", "CALIBRANT_GPUS", "CALIBRANT_GPU_DAY_PLANT"}
)
"""Variables of tests and training, of the client, of deploy/ and of scripts/gpu-day."""

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{22,}")
"""At least 128 random bits in base64; `secrets.token_urlsafe()` makes 256."""


def _reject_other_databases(url: SecretStr | None) -> SecretStr | None:
    if url is None or not url.get_secret_value():
        return None
    if not url.get_secret_value().startswith("postgresql://"):
        msg = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or nothing for SQLite"
        raise ValueError(msg)
    return url


def _reject_short_secret(secret: SecretStr | None) -> SecretStr | None:
    if secret is None or not secret.get_secret_value():
        return None
    if not _SECRET.fullmatch(secret.get_secret_value()):
        msg = "expected at least 22 letters, digits, - or _, e.g. of python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ValueError(msg)
    return secret


def _never(days: object) -> object:
    return None if days in {"never", ""} else days


def _pins(pins: str | dict[str, str] | None) -> dict[str, str] | None:
    if not isinstance(pins, str):
        return pins
    named = [re.fullmatch(r"([a-z0-9-]+)@([0-9a-f]{64})", pin) for pin in pins.replace(",", " ").split()]
    chosen = {pin[1]: pin[2] for pin in named if pin}
    if len(chosen) < len(named):
        msg = "expected NAME@SHA256 of models, each name once, with commas between them; GET /v1/models shows the identities"
        raise ValueError(msg)
    return chosen or None


def _split(origins: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(origins.replace(",", " ").split()) if isinstance(origins, str) else origins


def _reject_no_origin(origins: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"https?://[^/*]+", origin) for origin in origins):
        msg = "expected addresses without a path, e.g. http://localhost:3000, with commas between them; no *"
        raise ValueError(msg)
    return origins


def _reject_plain_http(issuer: str | None) -> str | None:
    if issuer and not re.match(r"https://[^/\s]+|http://(localhost|127\.0\.0\.1)(:\d+)?(/|$)", issuer):
        msg = "expected an address that begins with https://, e.g. https://login.hospital.example/realms/imaging"
        raise ValueError(msg)
    return issuer or None


def _reject_no_prefix(prefix: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", prefix):
        msg = "expected nothing, or a path without a slash at its end, e.g. /calibrant"
        raise ValueError(msg)
    return prefix


class Settings(BaseSettings):
    """Settings of the service, from environment variables with the prefix ``CALIBRANT_`` and the command line."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", hide_input_in_errors=True)

    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "calibrant")
    """Folder of scans, jobs and results. It must be on a local disk, not on a network share."""
    bundle_dir: Path | None = None
    """Folder of further bundles, a folder for each, besides the shipped ones."""
    bundle_pins: Annotated[dict[str, str] | None, NoDecode, BeforeValidator(_pins)] = None
    """The one version that is served of each of these models: name@sha256, several with commas between them."""
    bundle_keys_file: Path | None = None
    """File of minisign's public keys, one on each line: every bundle of `bundle_dir` must be signed with one of them."""
    database_url: Annotated[SecretStr | None, AfterValidator(_reject_other_databases)] = None
    """Address of the PostgreSQL database of the jobs; without it, a SQLite file in the state directory."""
    device: str = "cpu"
    """Devices that compute, with a process for each: cpu, cuda:0, several with commas between them, cpu*2, or auto."""
    engine: Literal["auto", "torch-fp32", "torch-bf16", "torch-fp16", "openvino-fp32", "openvino-bf16"] = "auto"
    """Engine that runs the networks; by default the fastest that the machine has and the card covers."""
    max_upload_bytes: PositiveInt = 2 << 30
    """Largest accepted body, in bytes."""
    check_bytes: Annotated[int, Field(ge=256 << 20)] = 4 << 30
    """Memory that the checks of all scans that arrive at once may take, in bytes."""
    reserve_bytes: NonNegativeInt = 64 << 20
    """Space that uploads leave free on the disk of the state directory, in bytes; never more than a fiftieth of the disk."""
    max_uploads: PositiveInt = 128
    """Most uploads at a time."""
    max_uploads_per_owner: PositiveInt = 64
    """Most uploads of one owner at a time."""
    max_upload_bytes_in_all: PositiveInt = 16 << 30
    """Most bytes of all uploads at a time."""
    max_upload_bytes_per_owner: PositiveInt = 8 << 30
    """Most bytes of one owner's uploads at a time."""
    max_jobs: PositiveInt = 50_000
    """Most unfinished jobs."""
    max_jobs_per_owner: PositiveInt = 20_000
    """Most unfinished jobs of one owner."""
    max_connections: PositiveInt = 2000
    """Most connections at a time; beyond, the one that has been silent for longest is closed."""
    max_header_bytes: PositiveInt = 65536
    """Largest accepted request line and headers, in bytes."""
    header_deadline_s: PositiveFloat = 10.0
    """Seconds within which they must be complete."""
    min_upload_bytes_per_s: PositiveInt = 1024
    """Least bytes per second of a body, over 30 seconds."""
    case_deadline_s: PositiveFloat = 600.0
    """Seconds after which a case is given up and its process killed."""
    memory_bytes: Annotated[int, Field(ge=1 << 30)] | None = None
    """Memory that each inference process may use on the CPU; by default they share that of the machine or container."""
    max_wait_s: PositiveFloat = 60.0
    """Longest time, in seconds, for which a request with `Prefer: wait` is held."""
    keys_file: Path | None = None
    """File of API keys, written by `calibrant keys`. With it, every request needs a key, and the service may listen beyond this machine."""
    oidc_issuer: Annotated[str | None, AfterValidator(_reject_plain_http)] = None
    """Address of the OpenID Connect provider whose tokens are accepted besides keys, as the tokens write it."""
    oidc_audience: str | None = None
    """Name of this service there, which its tokens carry in `aud`."""
    max_requests_per_minute: PositiveInt = 20_000
    """Most requests with one key in a minute."""
    max_failed_logins_per_minute: PositiveInt = 10
    """Most failed logins from one address in a minute."""
    session_hours: PositiveFloat = 8.0
    """Hours until a browser must log in again."""
    retention_days: Annotated[PositiveFloat | None, BeforeValidator(_never)] = 30.0
    """Days after which a finished job is erased with its scan and results; `never` keeps it until somebody deletes it."""
    logits_retention_days: PositiveFloat | None = None
    """Days after which the logits behind probabilities and uncertainty are erased; by default they are kept with the job."""
    pacs_file: Path | None = None
    """TOML file of the PACS that series come from and results go to: addresses, credentials and rules."""
    monailabel_secret: Annotated[SecretStr | None, AfterValidator(_reject_short_secret)] = None
    """Secret in the path /monailabel/SECRET/ for OHIF, which sends no key; by default there is no such path."""
    monailabel_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_reject_no_origin)
    ] = ()
    """Origins of the web pages that may read answers of /monailabel/, separated by commas."""
    root_path: Annotated[str, AfterValidator(_reject_no_prefix)] = ""
    """What a reverse proxy puts before every path, e.g. /calibrant, unless its X-Forwarded-Prefix says so."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)] = (
        ip_network("127.0.0.0/8"),
        ip_network("::1/128"),
    )
    """Addresses or networks of the reverse proxies whose X-Forwarded- headers are believed, separated by commas."""
    behind_proxy: bool = False
    """Whether a reverse proxy authenticates every request, so that the service may listen beyond this machine."""

    @property
    def retention_is_default(self) -> bool:
        """Whether nobody has chosen how long finished jobs are kept."""
        return "retention_days" not in self.model_fields_set

    @property
    def retention_text(self) -> str:
        """A sentence about how long finished jobs are kept."""
        if self.retention_days is None:
            return "finished jobs are kept until somebody deletes them"
        default = "; CALIBRANT_RETENTION_DAYS=never keeps them" if self.retention_is_default else ""
        return f"finished jobs are erased after {self.retention_days:g} days (unfinished ones never){default}"

    @model_validator(mode="after")
    def _reject_half_a_provider(self) -> Self:
        if self.oidc_issuer and not (self.oidc_audience and self.keys_file):
            msg = "CALIBRANT_OIDC_ISSUER needs CALIBRANT_OIDC_AUDIENCE, without which tokens for other services would be accepted, and CALIBRANT_KEYS_FILE"
            raise ValueError(msg)
        return self

    @property
    def postgresql_url(self) -> str | None:
        """`database_url` as plain text, with its password."""
        return self.database_url.get_secret_value() if self.database_url else None

    @property
    def monailabel_path(self) -> str | None:
        """`monailabel_secret` as plain text."""
        return self.monailabel_secret.get_secret_value() if self.monailabel_secret else None

    @classmethod
    def read(cls, *, behind_proxy: bool = False) -> Self:
        """Return the settings of the environment and the command line.

        Raises:
            SettingsError: a variable cannot be used, or there is no such setting.
        """
        cls._reject_unknown(os.environ)
        try:
            return cls(behind_proxy=True) if behind_proxy else cls()
        except ValidationError as error:
            names = ", ".join(
                f"CALIBRANT_{str(detail['loc'][0]).upper()} ({detail['msg']})" if detail["loc"] else detail["msg"]
                for detail in error.errors()
            )
            msg = f"These settings cannot be used: {names}. See docs/settings.md."
            raise SettingsError(msg) from error

    @classmethod
    def _reject_unknown(cls, names: Iterable[str]) -> None:
        """Refuse a variable that would be ignored, and name the nearest setting."""
        known = {f"{_PREFIX}{name.upper()}" for name in cls.model_fields} | _OF_OTHERS
        for name in sorted(names):
            if name.startswith(_PREFIX) and name not in known:
                rest = [one.removeprefix(_PREFIX) for one in known]
                near = difflib.get_close_matches(name.removeprefix(_PREFIX), rest, 1)
                advice = f" Did you mean {_PREFIX}{near[0]}?" if near else ""
                msg = f"There is no setting {name}.{advice} Remove the variable, or see docs/settings.md."
                raise SettingsError(msg)
