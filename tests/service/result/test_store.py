import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.result.store import Store, complete
from service.schemas import CaseResult

FILES = {"mask.nii.gz": [b"a", b"bc"], "summary.json": [b""]}


@pytest.fixture
def result() -> CaseResult:
    """Return the result of a case."""
    return CaseResult(
        model="m@0", device="cpu", engine="torch", precision="fp32", seconds={"decode": 0.25}, files={"a": "0"}
    )


def test_files_are_written_and_their_hashes_returned(tmp_path: Path) -> None:
    """The digests are SHA-256; that of "abc" is given in FIPS 180-2, appendix B.1."""
    with Store(tmp_path) as store:
        hashes = store.finish(FILES)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"mask.nii.gz": b"abc", "summary.json": b""}
    assert hashes == {
        "mask.nii.gz": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "summary.json": hashlib.sha256().hexdigest(),
    }


def test_a_file_is_written_while_the_caller_computes(tmp_path: Path) -> None:
    """A thread makes and writes its pieces; its digest is returned with the others."""
    started = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        started.set()
        yield b"bc"

    with Store(tmp_path) as store:
        store.begin("logits", pieces())
        assert started.wait(10)
        hashes = store.finish(FILES)

    assert hashes["logits"] == hashes["mask.nii.gz"]
    assert (tmp_path / "logits").read_bytes() == b"abc"


def test_nothing_is_written_after_a_failure(tmp_path: Path) -> None:
    """The folder may be erased at once after a failure, because the thread has ended."""
    started = threading.Event()
    ended: list[bool] = []

    def pieces() -> Iterator[bytes]:
        started.set()
        yield b"a"
        time.sleep(0.2)
        ended.append(True)

    def give_up() -> None:
        with Store(tmp_path) as store:
            store.begin("logits", pieces())
            assert started.wait(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert ended == [True]


def test_a_result_comes_back_as_it_was_written(tmp_path: Path, result: CaseResult) -> None:
    """`result.json` holds the wire type."""
    complete(tmp_path, result)

    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert CaseResult.model_validate_json((tmp_path / "result.json").read_bytes()) == result


def test_every_file_and_the_folder_reach_the_disk_before_the_result(
    tmp_path: Path, result: CaseResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushes follow the order: each file, their folder, then `result.json` and the folder again."""
    flushed: list[str] = []
    really = os.fsync

    def watch(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with Store(tmp_path) as store:
        store.begin("logits", [b"l"])
        store.finish(FILES)
    complete(tmp_path, result)

    folder = tmp_path.name
    assert sorted(flushed[:3]) == ["logits", "mask.nii.gz", "summary.json"]
    assert flushed[3:] == [folder, "result.json", folder]


def test_a_failing_disk_is_an_error(tmp_path: Path, result: CaseResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a flush fails the call fails, too."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)

    nothing: dict[str, list[bytes]] = {}
    for early, files in ((FILES, nothing), (nothing, FILES)):
        with Store(tmp_path) as store:
            for name, pieces in early.items():
                store.begin(name, pieces)
            with pytest.raises(OSError, match="Input/output error"):
                store.finish(files)
    with pytest.raises(OSError, match="Input/output error"):
        complete(tmp_path, result)
