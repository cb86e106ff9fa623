import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from minisign import KeyPair, PublicKey

from service.bundle.description import describe_bundle
from service.bundle.signature import SIGNATURE, read_public_keys, reject_unsigned
from service.errors import BundleIntegrity, SettingsError

Reseal = Callable[[Path], str]

KEYS = KeyPair.generate()


def sign(root: Path, keys: KeyPair = KEYS) -> None:
    """Sign a bundle's manifest."""
    signature = keys.secret_key.sign((root / "MANIFEST.json").read_bytes())
    (root / SIGNATURE).write_bytes(bytes(signature))


def test_a_signed_bundle_is_accepted_and_keeps_its_identity(tiny_bundle: Path) -> None:
    """The signature is no file of the manifest, so it can be added later."""
    identity = describe_bundle(tiny_bundle).identity
    sign(tiny_bundle)

    reject_unsigned(tiny_bundle, (KeyPair.generate().public_key, KEYS.public_key))
    assert describe_bundle(tiny_bundle).identity == identity


def test_f9_a_bundle_that_was_sealed_again_is_not_signed(tiny_bundle: Path, reseal: Reseal) -> None:
    """Whoever changes a temperature can write new hashes, but no new signature."""
    sign(tiny_bundle)
    (tiny_bundle / "LICENSE").write_text("mine")
    reseal(tiny_bundle)

    with pytest.raises(BundleIntegrity, match="none of the 1 keys"):
        reject_unsigned(tiny_bundle, (KEYS.public_key,))


@pytest.mark.parametrize("content", [None, b"", b"untrusted comment: x\nAAAA\n", os.urandom(300), b"\xff" * 10**5])
def test_f9_without_a_signature_of_a_known_key_nothing_is_served(tiny_bundle: Path, content: bytes | None) -> None:
    """None, none that can be read, and one of a stranger."""
    if content is not None:
        (tiny_bundle / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleIntegrity, match="minisign -S"):
        reject_unsigned(tiny_bundle, (KEYS.public_key,))
    sign(tiny_bundle, KeyPair.generate())
    with pytest.raises(BundleIntegrity, match="keys that this site trusts"):
        reject_unsigned(tiny_bundle, (KEYS.public_key,))


def test_a_list_of_keys_is_one_on_each_line(tmp_path: Path) -> None:
    """As minisign writes a public key, comments included; a file without a key, or with nonsense, is refused."""
    path = tmp_path / "keys"
    other = KeyPair.generate().public_key
    path.write_bytes(b"# ours\n" + bytes(KEYS.public_key) + b"\n" + other.to_base64() + b"\n")

    assert read_public_keys(path) == (KEYS.public_key, other)
    assert read_public_keys(None) == ()
    for text in ("", "# nothing\n", "nonsense\n"):
        path.write_text(text)
        with pytest.raises(SettingsError, match="CALIBRANT_BUNDLE_KEYS_FILE"):
            read_public_keys(path)
    with pytest.raises(SettingsError):
        read_public_keys(tmp_path / "none")


def test_debians_minisign_agrees(tiny_bundle: Path, tmp_path: Path) -> None:
    """What it signs is accepted here, and what is signed here it accepts."""
    if shutil.which("minisign") is None:
        msg = "minisign is absent: apt-get install minisign"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    manifest = str(tiny_bundle / "MANIFEST.json")

    def run(*arguments: str) -> None:
        subprocess.run(["minisign", *arguments], check=True, capture_output=True, input=b"\n\n", timeout=60)

    run("-G", "-W", "-p", str(tmp_path / "key.pub"), "-s", str(tmp_path / "key"))
    run("-S", "-s", str(tmp_path / "key"), "-m", manifest)
    theirs = read_public_keys(tmp_path / "key.pub")
    reject_unsigned(tiny_bundle, theirs)

    sign(tiny_bundle)
    run("-V", "-P", KEYS.public_key.to_base64().decode(), "-m", manifest)
    with pytest.raises(BundleIntegrity):
        reject_unsigned(tiny_bundle, theirs)
    assert isinstance(theirs[0], PublicKey)
