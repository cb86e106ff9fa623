"""Whether a bundle is signed by someone whom the site trusts: `MANIFEST.json.minisig`, as minisign writes it.

The manifest holds the hash of every other file, so its signature covers the whole bundle. Sign one with
`minisign -S -m MANIFEST.json`. The format: https://jedisct1.github.io/minisign/
"""

from pathlib import Path
from typing import Final

from minisign import Error, PublicKey, Signature

from service.bundle.manifest import NAME
from service.errors import BundleIntegrity, SettingsError

SIGNATURE: Final = f"{NAME}.minisig"
"""File name of the signature; it is not listed in the manifest."""

_MAX_BYTES: Final = 1 << 14
_COMMENT: Final = "untrusted comment:"


def read_public_keys(path: Path | None) -> tuple[PublicKey, ...]:
    """Return the keys of a file, one on each line as `minisign -G` prints them; comments and empty lines are skipped.

    Args:
        path: the file; None for no keys.

    Raises:
        SettingsError: the file cannot be read, holds no key, or a line that is none.
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
        keys = tuple(PublicKey.from_base64(line) for line in lines if line and not line.startswith(("#", _COMMENT)))
    except (OSError, ValueError, Error) as error:
        msg = f"{path} holds no list of minisign's public keys, one on each line. Set CALIBRANT_BUNDLE_KEYS_FILE to one that does."
        raise SettingsError(msg) from error
    if not keys:
        msg = f"{path} holds no key, so no bundle would be served. Add a public key of minisign, or unset CALIBRANT_BUNDLE_KEYS_FILE."
        raise SettingsError(msg)
    return keys


def reject_unsigned(root: Path, keys: tuple[PublicKey, ...]) -> None:
    """Refuse the bundle at `root` unless one of the keys has signed its manifest.

    Raises:
        BundleIntegrity: there is no signature, or it is of another key or another manifest.
    """
    manifest = (root / NAME).read_bytes()
    try:
        with (root / SIGNATURE).open("rb") as file:
            signature = Signature.from_bytes(file.read(_MAX_BYTES))
    except (OSError, ValueError, Error) as error:
        msg = f"No readable {SIGNATURE} was found, and this site serves only bundles that are signed. Sign it: minisign -S -m {NAME}"
        raise BundleIntegrity(msg) from error
    if not any(_verifies(key, manifest, signature) for key in keys):
        msg = f"{SIGNATURE} is of none of the {len(keys)} keys that this site trusts, or of another {NAME}. Ask who made the bundle, or trust their key."
        raise BundleIntegrity(msg)


def _verifies(key: PublicKey, manifest: bytes, signature: Signature) -> bool:
    try:
        key.verify(manifest, signature)
    except Error:
        return False
    return True
