import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from pydicom.dataset import Dataset

from service.commands.batch import pacs as module
from service.commands.batch.source import find_cases
from service.errors import PacsNotFound, SourceError
from service.pacs.selection import Series

CT = Series("1.2.4", "1.2.5", "CT", "chest", instances=6)


class Peer:
    """A PACS with a CT, an MR and a result."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.uids = [f"1.2.3.{k + 1}" for k in range(len(files))]
        self.fetched = 0
        self.asked: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def find_series(self, **place: str) -> list[Series]:
        """Return all series."""
        self.asked.append(place)
        return [CT, Series("1.2.4", "1.2.6", "MR", instances=20), Series("1.2.4", "1.2.7", "SEG")]

    def find_instances(self, *_: str) -> list[str]:
        """Return the instances."""
        return self.uids

    def fetch_series(self, *_: str) -> Iterator[bytes]:
        """Yield the files."""
        self.fetched += 1
        yield from self.files


@pytest.fixture
def peer(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    slices_of: Callable[..., list[Dataset]],
    dicom_file: Callable[[Dataset], bytes],
) -> Peer:
    """Return the PACS `clinic`."""
    (tmp_path / "pacs.toml").write_text('[pacs.clinic]\nurl = "http://127.0.0.1:9/dicom-web"\n')
    monkeypatch.setenv("CALIBRANT_PACS_FILE", str(tmp_path / "pacs.toml"))
    monkeypatch.setenv("CALIBRANT_STATE_DIR", str(tmp_path / "state"))
    peer = Peer([dicom_file(image) for image in slices_of()])
    monkeypatch.setattr(module, "open_peer", lambda _: peer)
    return peer


def find(query: str, out: Path) -> Any:  # noqa: ANN401 - a selection
    """Return the cases of a query."""
    return find_cases(Path(f"pacs:clinic{query}"), out)


def test_series_that_fit_are_pulled_once(peer: Peer, tmp_path: Path) -> None:
    """A second run finds the series on the disk; none of it is among the results."""
    first_run = find("?modality=CT&study=1.2.4", tmp_path / "out")
    again = find("?modality=CT&study=1.2.4", tmp_path / "out")
    (case,) = first_run.cases
    assert (case.id, case.is_series, len(case.files)) == ("1.2.5", True, 6)
    assert again == first_run
    assert peer.fetched == 1
    assert peer.asked[0] == {"study": "1.2.4"}
    assert all(path.is_relative_to(tmp_path / "state" / "pulled") for path in case.files)
    assert sorted(path.read_bytes() for path in case.files) == sorted(peer.files)
    reasons = [skipped.reason for skipped in first_run.skipped]
    assert reasons == ["it does not fit the query", "results or documents, or made by Calibrant"]
    with case.opened() as packed:
        assert io.BytesIO(packed.read_bytes()).read(2) == b"PK"


def test_images_that_came_late_are_pulled(peer: Peer, tmp_path: Path) -> None:
    """A changed digest makes the series be pulled again."""
    whole = peer.files, peer.uids
    peer.files, peer.uids = peer.files[:4], peer.uids[:4]
    assert len(find("?modality=CT", tmp_path).cases[0].files) == 4
    peer.files, peer.uids = whole
    assert len(find("?modality=CT", tmp_path).cases[0].files) == 6


def test_half_a_series_is_no_case(peer: Peer, tmp_path: Path) -> None:
    """The PACS must send exactly the images that it lists."""
    peer.files = peer.files[:4]
    with pytest.raises(SourceError, match="4 images"):
        find("?modality=CT", tmp_path)


@pytest.mark.parametrize("query", ["?colour=red", "?min_instances=many", "?description=("])
def test_a_query_that_cannot_be_used_says_what_may_be_asked(peer: Peer, tmp_path: Path, query: str) -> None:
    """An invalid query is refused before the PACS is contacted."""
    with pytest.raises(SourceError, match="study, series, modality"):
        find(query, tmp_path)
    assert peer.asked == []


def test_an_unknown_pacs_is_told(peer: Peer, tmp_path: Path) -> None:
    """The message lists the configured names."""
    with pytest.raises(PacsNotFound, match="clinic"):
        find_cases(Path("pacs:nowhere"), tmp_path)
    assert peer.fetched == 0
