"""API keys and their owners, in one JSON file that holds only hashes of the keys; `calibrant keys` writes it.

A key reads ``cal_<id>_<secret>``: the id selects the entry, the secret's SHA-256 is compared in constant time. Secrets
have 256 random bits, so a slow password hash would add no protection.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from service.errors import SettingsError
from service.storage.durable import write_durably

log = structlog.get_logger(__name__)

LOCAL: Final = "local"
"""Owner of everything if no keys are in use."""

OwnerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


Scope = Literal["submit", "read"]
"""What a key is for: to send scans, and to cancel and erase jobs; or to see jobs and results."""

EVERYTHING: Final[frozenset[Scope]] = frozenset({"submit", "read"})


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a request.

    Args:
        name: lower-case letters, digits and hyphens; also the name of a folder.
        admin: may load and unload models.
        key: id of the key; empty if no keys are in use.
        scopes: what the key is for.
    """

    name: str
    admin: bool
    key: str = ""
    scopes: frozenset[Scope] = EVERYTHING


class Key(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    owner: OwnerName
    admin: bool = False
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the secret."""
    created: dt.date
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = EVERYTHING
    """Keys of version 0.1 have none in the file, and may do everything."""

    @field_serializer("scopes")
    def _in_order(self, scopes: frozenset[Scope]) -> list[str]:
        return sorted(scopes)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = []


class Keys:
    """The keys of a file, which is read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            SettingsError: the file is missing or is not a file of keys.
        """
        self._path = path
        self._read_at = (0, 0, 0)
        self._keys: dict[str, Key] = {}
        self._refresh()

    def owner_of(self, presented: str) -> Owner | None:
        """Return the owner of a key, or None if it is not valid; no key is valid while the file cannot be read."""
        self._try_to_refresh()
        parts = presented.split("_", 2)
        identifier, secret = (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "cal" else ("", "")  # noqa: PLR2004 - cal, id, secret
        key = self._keys.get(identifier)
        expected = key.sha256 if key else hashlib.sha256(b"").hexdigest()
        same = hmac.compare_digest(_hash(secret), expected)
        return Owner(key.owner, key.admin, key.id, key.scopes) if key and same else None

    def holds(self, identifier: str) -> bool:
        """Return whether the file still has a key."""
        self._try_to_refresh()
        return identifier in self._keys

    def _try_to_refresh(self) -> None:
        try:
            self._refresh()
        except SettingsError:
            self._keys, self._read_at = {}, (0, 0, 0)
            log.error("the file of keys cannot be used: every request is refused")  # noqa: TRY400 - the traceback would log the path

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            msg = f"The file of keys, {self._path}, cannot be read ({error.strerror}). calibrant keys add OWNER makes one."
            raise SettingsError(msg) from error
        # Inode and size, too: two changes may fall into one tick of the file system's clock.
        version = status.st_mtime_ns, status.st_ino, status.st_size
        if version != self._read_at:
            self._keys = {key.id: key for key in read_keys(self._path)}
            self._read_at = version


def read_keys(path: Path) -> list[Key]:
    """Return the entries of a file; none if the file does not exist.

    Raises:
        SettingsError: it is not a file of keys.
    """
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except (ValidationError, OSError) as error:
        msg = f"{path} is not a file of keys. Restore it, or remove it and make new keys with calibrant keys add OWNER."
        raise SettingsError(msg) from error


def add_key(path: Path, owner: str, *, admin: bool, scopes: frozenset[Scope] = EVERYTHING) -> str:
    """Add a key to the file and return it; it cannot be shown again.

    The file is created if missing, readable by its user alone. An administrator's key may do everything.

    Raises:
        SettingsError: the owner's name cannot be used, or the file is not a file of keys or cannot be written.
    """
    keys = read_keys(path)
    identifier, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    try:
        key = Key(
            id=identifier,
            owner=owner,
            admin=admin,
            sha256=_hash(secret),
            created=dt.datetime.now(dt.UTC).date(),
            scopes=EVERYTHING if admin else scopes,
        )
    except ValidationError as error:
        msg = "An owner's name has 1 to 63 lower-case letters, digits and hyphens, e.g. radiology-lab."
        raise SettingsError(msg) from error
    _write(path, [*keys, key])
    return f"cal_{identifier}_{secret}"


def remove_key(path: Path, identifier: str) -> bool:
    """Remove a key from the file and return whether it was there."""
    keys = read_keys(path)
    kept = [key for key in keys if key.id != identifier]
    if len(kept) < len(keys):
        _write(path, kept)
    return len(kept) < len(keys)


def _write(path: Path, keys: list[Key]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # a leftover of a crash may be readable by others
        part.touch(mode=0o600)
        part.chmod(0o600)  # whatever the umask took away
        write_durably(part, (_File(keys=keys).model_dump_json(indent=2) + "\n").encode())
        part.replace(path)
    except OSError as error:
        msg = f"The file of keys, {path}, cannot be written ({error.strerror})."
        raise SettingsError(msg) from error


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
