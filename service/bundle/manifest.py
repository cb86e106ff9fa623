"""`MANIFEST.json`: the SHA-256 of every file of a bundle; its own SHA-256 identifies the bundle."""

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from service.bundle.schema import Declaration
from service.errors import BundleIntegrity

NAME: Final = "MANIFEST.json"
"""File name of the manifest at the root of a bundle."""

_CHUNK_BYTES = 1 << 20


class _Manifest(Declaration):
    schema_version: Literal["1.0"] = "1.0"
    files: dict[str, str]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(root: Path) -> str:
    """Write `MANIFEST.json` over every file below `root` and return its own SHA-256, the bundle's identity."""
    (root / NAME).unlink(missing_ok=True)
    files = {path: sha256_of(root / path) for path in _files(root)}
    (root / NAME).write_text(_Manifest(files=files).model_dump_json(indent=2) + "\n")
    return sha256_of(root / NAME)


def verify_manifest(root: Path) -> str:
    """Compare every file of a bundle but its signature with its manifest and return the manifest's SHA-256, the bundle's identity.

    Raises:
        BundleIntegrity: there is no manifest, or a file is missing, added, changed or a link.
    """
    try:
        expected = _Manifest.model_validate_json((root / NAME).read_bytes()).files
    except (OSError, ValidationError) as error:
        msg = f"No readable {NAME} was found. Install the bundle again from its source."
        raise BundleIntegrity(msg) from error
    actual = {path: sha256_of(root / path) for path in _files(root)}
    differing = sorted(path for path in {*expected, *actual} if expected.get(path) != actual.get(path))
    if differing:
        msg = f"{len(differing)} files differ from {NAME}, first {differing[0]}. Install the bundle again from its source."
        raise BundleIntegrity(msg)
    return sha256_of(root / NAME)


def _files(root: Path) -> list[str]:
    links = [path for path in root.rglob("*") if path.is_symlink()]
    if links:
        msg = f"{len(links)} symbolic links were found. A bundle holds plain files only."
        raise BundleIntegrity(msg)
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path not in (root / NAME, root / f"{NAME}.minisig")
    )
