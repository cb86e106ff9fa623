"""Every setting of the service: environment variable, unit, default."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment with the prefix ``CALIBRANT_``; the command line wins."""

    model_config = SettingsConfigDict(env_prefix="CALIBRANT_", extra="ignore")

    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "calibrant")
    """Scans, jobs and results. A local disk, not a network share."""
    bundle_dir: Path | None = None
    """Folder with further bundles, one folder each, beside those that are shipped."""
    device: str = "cpu"
    """torch device of the inference process, e.g. cpu or cuda:0."""
    max_upload_bytes: PositiveInt = 2 << 30
    """Largest body accepted."""
    case_deadline_s: PositiveFloat = 600.0
    """Seconds after which a case is given up and its process killed."""
    max_wait_s: PositiveFloat = 60.0
    """Longest time for which a request with Prefer: wait is held."""
    behind_proxy: bool = False
    """A reverse proxy authenticates every request: only then may the service listen beyond this machine."""
