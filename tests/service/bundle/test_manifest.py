import hashlib
import json
from pathlib import Path

import pytest

from service.bundle.manifest import sha256_of, verify_manifest, write_manifest
from service.errors import BundleIntegrity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two files with its manifest."""
    root = tmp_path / "bundle"
    (root / "models").mkdir(parents=True)
    (root / "LICENSE").write_bytes(b"abc")
    (root / "models" / "weights").write_bytes(bytes(range(256)))
    write_manifest(root)
    return root


def test_manifest_lists_the_sha256_of_every_file(folder: Path) -> None:
    """Paths are relative with forward slashes; the digest of "abc" is given in FIPS 180-2, appendix B.1."""
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())

    assert manifest == {
        "schema_version": "1.0",
        "files": {
            "LICENSE": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "models/weights": hashlib.sha256(bytes(range(256))).hexdigest(),
        },
    }


def test_the_identity_is_the_hash_of_the_manifest(folder: Path) -> None:
    """Writing and verifying agree on the identity, and writing again does not change it."""
    identity = hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()

    assert verify_manifest(folder) == identity
    assert write_manifest(folder) == identity


def test_large_files_are_hashed_whole(tmp_path: Path) -> None:
    """A file that takes several reads has the digest of all its bytes."""
    content = bytes(range(251)) * 9000
    (tmp_path / "large").write_bytes(content)

    assert sha256_of(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_one_flipped_bit_is_found(folder: Path) -> None:
    """Weights that differ in one bit are not those of the manifest."""
    weights = folder / "models" / "weights"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)

    with pytest.raises(BundleIntegrity, match=r"1 files differ from MANIFEST\.json, first models/weights"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", ["extra.py", "models/extra", ".hidden", "models/MANIFEST.json"])
def test_a_file_that_the_manifest_does_not_list_is_found(folder: Path, name: str) -> None:
    """Nothing can be added to a bundle under any name."""
    (folder / name).write_bytes(b"{}")

    with pytest.raises(BundleIntegrity, match=name):
        verify_manifest(folder)


def test_a_missing_file_is_found(folder: Path) -> None:
    """A bundle without its licence is not the bundle of the manifest."""
    (folder / "LICENSE").unlink()

    with pytest.raises(BundleIntegrity, match="first LICENSE"):
        verify_manifest(folder)


def test_a_link_is_refused_even_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """The target of a link may change after it was hashed."""
    weights = folder / "models" / "weights"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleIntegrity, match="1 symbolic links"):
        verify_manifest(folder)
    with pytest.raises(BundleIntegrity, match="1 symbolic links"):
        write_manifest(folder)


def test_a_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """Files in a linked folder do not belong to the bundle."""
    (tmp_path / "elsewhere").mkdir()
    (folder / "docs").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleIntegrity, match="1 symbolic links"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"files": {', id="cut short"),
        pytest.param(b"\xff\xfe", id="not text"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no files"),
        pytest.param(b'{"files": []}', id="files in a list"),
        pytest.param(b'{"files": null}', id="files are null"),
    ],
)
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    """Every fault of the manifest gives the same error."""
    (folder / "MANIFEST.json").write_bytes(content)

    with pytest.raises(BundleIntegrity):
        verify_manifest(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    """A folder without a manifest is not a bundle."""
    with pytest.raises(BundleIntegrity, match=r"No readable MANIFEST\.json"):
        verify_manifest(tmp_path)
