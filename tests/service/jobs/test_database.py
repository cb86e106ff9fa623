import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.jobs.database import open_database
from service.storage.local import StateDirectory
from tests.service.jobs.contract import JobDatabaseContract

NOBODY = "postgresql://calibrant:secret@127.0.0.1:1/jobs"
"""Nothing listens on port 1. tests/e2e/test_postgres.py uses a real server."""


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return a fresh state directory."""
    return StateDirectory.open(tmp_path / "state")


class TestSqlite(JobDatabaseContract):
    """A SQLite file in the state directory."""

    @pytest.fixture
    def url(self) -> str | None:
        """Return no URL."""
        return None


def test_without_a_server_the_jobs_are_in_a_file_with_a_write_ahead_log(state: StateDirectory) -> None:
    """Without a server, jobs are in a SQLite file with a write-ahead log, which is always reachable."""
    opened = open_database(state, None)

    assert opened.address == f"sqlite:///{state.database}"
    assert opened.reachable
    with closing(sqlite3.connect(state.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_server_that_does_not_answer_is_told_without_its_password(state: StateDirectory) -> None:
    """The message names the setting and what to check; neither it nor its cause holds the address."""
    with pytest.raises(SettingsError, match="CALIBRANT_DATABASE_URL cannot be used") as caught:
        open_database(state, NOBODY)

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not state.is_named
