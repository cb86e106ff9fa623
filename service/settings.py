"""Every setting of the service: environment variable, unit, default."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{22,}")
"""128 random bits in base64, at least: what `secrets.token_urlsafe()` makes has 256."""


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


def _split(origins: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(origins.replace(",", " ").split()) if isinstance(origins, str) else origins


def _reject_no_origin(origins: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"https?://[^/*]+", origin) for origin in origins):
        msg = "expected addresses without a path, e.g. http://localhost:3000, with commas between them; no *"
        raise ValueError(msg)
    return origins


class Settings(BaseSettings):
    """Read from the environment with the prefix ``CALIBRANT_``; the command line wins."""

    model_config = SettingsConfigDict(env_prefix="CALIBRANT_", extra="ignore", hide_input_in_errors=True)

    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "calibrant")
    """Scans, jobs and results. A local disk, not a network share."""
    bundle_dir: Path | None = None
    """Folder with further bundles, one folder each, beside those that are shipped."""
    database_url: Annotated[SecretStr | None, AfterValidator(_reject_other_databases)] = None
    """Address of the PostgreSQL database of the jobs; a SQLite file in the state directory where it is absent or empty."""
    device: str = "cpu"
    """torch device of the inference process, e.g. cpu or cuda:0."""
    engine: Literal["auto", "torch-fp32", "torch-bf16", "openvino-fp32", "openvino-bf16"] = "auto"
    """What runs the networks; by default the fastest that the machine has and the card covers."""
    max_upload_bytes: PositiveInt = 2 << 30
    """Largest body accepted."""
    case_deadline_s: PositiveFloat = 600.0
    """Seconds after which a case is given up and its process killed."""
    memory_bytes: PositiveInt | None = None
    """Memory that the inference process may use on the CPU; the machine's, or the container's, by default."""
    max_wait_s: PositiveFloat = 60.0
    """Longest time for which a request with Prefer: wait is held."""
    keys_file: Path | None = None
    """API keys, written by `calibrant keys`: with it every request needs one, and other addresses may be listened on."""
    session_hours: PositiveFloat = 8.0
    """Hours until a browser that logged in must do so again."""
    retention_days: PositiveFloat | None = None
    """Days after which a finished job is erased with its scan and results; kept until deleted by default."""
    logits_retention_days: PositiveFloat | None = None
    """Days after which the logits behind probabilities and uncertainty are erased; as long as the job by default."""
    pacs_file: Path | None = None
    """TOML file of the PACS that series come from and results go to: addresses, credentials and rules."""
    monailabel_secret: Annotated[SecretStr | None, AfterValidator(_reject_short_secret)] = None
    """Part of a path, /monailabel/SECRET/, by which OHIF, which sends no key, is let in; no such path by default."""
    monailabel_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_reject_no_origin)
    ] = ()
    """Origins of the web pages that may read answers of /monailabel/, with commas between them."""
    behind_proxy: bool = False
    """A reverse proxy authenticates every request: only then may the service listen beyond this machine."""

    @property
    def postgresql_url(self) -> str | None:
        """`database_url` with its password."""
        return self.database_url.get_secret_value() if self.database_url else None

    @property
    def monailabel_path(self) -> str | None:
        """`monailabel_secret` as it stands in a path."""
        return self.monailabel_secret.get_secret_value() if self.monailabel_secret else None

    @classmethod
    def read(cls, *, behind_proxy: bool = False) -> Self:
        """Return the settings of the environment, with those that the command line gave.

        Raises:
            SettingsError: a variable cannot be used.
        """
        try:
            return cls(behind_proxy=True) if behind_proxy else cls()
        except ValidationError as error:
            names = ", ".join(f"CALIBRANT_{str(each['loc'][0]).upper()} ({each['msg']})" for each in error.errors())
            msg = f"These settings cannot be used: {names}. See docs/settings.md."
            raise SettingsError(msg) from error
