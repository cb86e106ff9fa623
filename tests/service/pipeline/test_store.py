import hashlib
import os
from pathlib import Path

import pytest

from service.pipeline.store import complete, write_files
from service.schemas import CaseResult

FILES = {"mask.nii.gz": [b"a", b"bc"], "summary.json": [b""]}


@pytest.fixture
def result() -> CaseResult:
    """Return how a case was computed."""
    return CaseResult(
        model="m@0", device="cpu", engine="torch", precision="fp32", seconds={"decode": 0.25}, files={"a": "0"}
    )


def test_files_are_written_and_their_hashes_returned(tmp_path: Path) -> None:
    """The digests are SHA-256, that of "abc" the one of FIPS 180-2, appendix B.1."""
    hashes = write_files(tmp_path, FILES)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"mask.nii.gz": b"abc", "summary.json": b""}
    assert hashes == {
        "mask.nii.gz": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "summary.json": hashlib.sha256().hexdigest(),
    }


def test_a_result_comes_back_as_it_was_written(tmp_path: Path, result: CaseResult) -> None:
    """`result.json` is the wire type itself."""
    complete(tmp_path, result)

    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert CaseResult.model_validate_json((tmp_path / "result.json").read_bytes()) == result


def test_every_file_and_the_folder_reach_the_disk_before_the_result(
    tmp_path: Path, result: CaseResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the flushes is: each file, the entries of all in the folder, then `result.json` and its entry."""
    flushed: list[str] = []
    really = os.fsync

    def watch(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_files(tmp_path, FILES)
    complete(tmp_path, result)

    folder = tmp_path.name
    assert flushed == ["mask.nii.gz", "summary.json", folder, "result.json", folder]


def test_a_disk_that_fails_is_not_passed_over(
    tmp_path: Path, result: CaseResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the flush fails, so does the call: nobody is told that the bytes are safe."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="Input/output error"):
        write_files(tmp_path, FILES)
    with pytest.raises(OSError, match="Input/output error"):
        complete(tmp_path, result)
