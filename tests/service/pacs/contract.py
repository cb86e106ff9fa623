"""The contract suites of what series come from: every source keeps the first, every PACS also the second."""

from pathlib import Path

import pytest

from service.errors import CalibrantError
from service.pacs.instance import content_digest
from service.pacs.peer import Peer, SeriesSource

STUDY, SERIES = "1.2.4", "1.2.5"
INSTANCES = [f"1.2.3.{k + 1}" for k in range(6)]


class SeriesSourceContract:
    """A source lists and yields the series that it holds, and nothing else.

    A subclass gives the fixture `source`: it holds the six files of `series_files`.
    """

    @pytest.fixture
    def source(self, series_files: list[Path]) -> SeriesSource:
        """Return a source that holds the series."""
        raise NotImplementedError

    @pytest.mark.parametrize("query", [{"series": SERIES}, {"study": STUDY}])
    def test_a_series_is_found_by_its_uid_or_its_study(self, source: SeriesSource, query: dict[str, str]) -> None:
        """Its study, modality and number of instances are known."""
        with source:
            (series,) = source.find_series(**query)

        assert (series.study, series.uid, series.modality) == (STUDY, SERIES, "CT")
        assert series.instances in (6, None)

    def test_an_unknown_series_is_not_found(self, source: SeriesSource) -> None:
        """A query without a match gives an empty list, not an error."""
        with source:
            assert source.find_series(series="1.2.99") == []
            assert source.find_series(study="1.2.99") == []

    def test_instances_are_listed_in_order(self, source: SeriesSource) -> None:
        """The SOP Instance UIDs are sorted."""
        with source:
            assert source.find_instances(STUDY, SERIES) == INSTANCES

    def test_the_files_of_a_series_are_complete(self, source: SeriesSource, series_files: list[Path]) -> None:
        """Each file has the content that was stored, whatever the way from the source."""
        stored = sorted(content_digest(path.read_bytes()) for path in series_files)
        with source:
            fetched = sorted(content_digest(content) for content in source.fetch_series(STUDY, SERIES))

        assert fetched == stored

    def test_a_series_that_is_not_there_cannot_be_fetched(self, source: SeriesSource) -> None:
        """An empty series is never taken for a whole one."""
        with source, pytest.raises(CalibrantError):
            list(source.fetch_series("1.2.99", "1.2.98"))


class PeerContract(SeriesSourceContract):
    """A PACS also stores objects and gives back single ones.

    A subclass gives the fixture `peer`: a connection to a PACS that is empty.
    """

    @pytest.fixture
    def peer(self) -> Peer:
        """Return a connection to an empty PACS."""
        raise NotImplementedError

    @pytest.fixture
    def source(self, peer: Peer, series_files: list[Path]) -> SeriesSource:
        """Return the PACS after the series was stored in it."""
        for path in series_files:
            peer.store(path)
        return peer

    def test_an_empty_pacs_holds_nothing(self, peer: Peer) -> None:
        """Before anything is stored no query has a match."""
        with peer:
            assert peer.find_series(series=SERIES) == []
            assert not peer.holds(STUDY, SERIES, INSTANCES[0])

    def test_a_stored_object_is_held_and_fetched(self, peer: Peer, series_files: list[Path]) -> None:
        """The object that comes back has the content of the one that was stored."""
        with peer:
            peer.store(series_files[0])

            assert peer.holds(STUDY, SERIES, INSTANCES[0])
            assert not peer.holds(STUDY, SERIES, INSTANCES[1])
            fetched = peer.fetch_instance(STUDY, SERIES, INSTANCES[0])
        assert content_digest(fetched) == content_digest(series_files[0].read_bytes())

    def test_an_object_that_is_stored_twice_is_one(self, peer: Peer, series_files: list[Path]) -> None:
        """A repeated delivery does not duplicate it."""
        with peer:
            peer.store(series_files[0])
            peer.store(series_files[0])

            assert peer.find_instances(STUDY, SERIES) == INSTANCES[:1]
