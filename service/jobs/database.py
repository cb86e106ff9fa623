"""The database of the jobs: a SQLite file in the state directory, or a database of a PostgreSQL server.

A job and its result belong together, so a PostgreSQL database belongs to the state directory that used it first, and
to no other: of two services on one database, each would take the other's running jobs for its own interrupted ones.
The state directory itself is locked by the service that runs on it.
"""

import sqlite3
from contextlib import closing
from typing import Final

import psycopg

from service.errors import SettingsError
from service.storage.local import StateDirectory

CONNECT_S: Final = 5
"""Seconds within which a server must take a connection."""

# Any number that no other program is likely to lock.
_LOCK: Final = 0x63616C696272


def open_database(state: StateDirectory, postgresql_url: str | None) -> str:
    """Make the database ready for DBOS and return its address.

    Args:
        state: the directory of the scans and results.
        postgresql_url: of a PostgreSQL database; SQLite if None.

    Raises:
        SettingsError: the server cannot be reached, or the database belongs to another state directory.
    """
    if postgresql_url is None:
        _use_write_ahead_log(state)
        return f"sqlite:///{state.database}"
    try:
        _claim(postgresql_url, state.identity)
    except psycopg.Error as error:
        # The text of the error may hold the address, and that a password.
        msg = (
            f"The database of CALIBRANT_DATABASE_URL cannot be used (SQLSTATE {error.sqlstate or 'none: no connection'}). "
            "Look whether the server runs, and whether user, password and database of the address exist there."
        )
        raise SettingsError(msg) from None
    return postgresql_url


def is_reachable(address: str) -> bool:
    """Return whether the database that `open_database` returned answers; a SQLite file always does."""
    if address.startswith("sqlite:"):
        return True
    try:
        with psycopg.connect(address, connect_timeout=CONNECT_S) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _use_write_ahead_log(state: StateDirectory) -> None:
    # Kept by the file. With the default rollback journal readers block the writer. Each commit is still flushed:
    # SQLite's synchronous=FULL is the default of every connection.
    with closing(sqlite3.connect(state.database)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _claim(url: str, identity: str) -> None:
    with psycopg.connect(url, connect_timeout=CONNECT_S) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])  # two that come first
        connection.execute("CREATE TABLE IF NOT EXISTS calibrant_state_directory (id text PRIMARY KEY)")
        owner = connection.execute("SELECT id FROM calibrant_state_directory").fetchone()
        if owner is None:
            connection.execute("INSERT INTO calibrant_state_directory VALUES (%s)", [identity])
        elif owner[0] != identity:
            msg = (
                "The database of CALIBRANT_DATABASE_URL belongs to another state directory, where its results lie. "
                "Set CALIBRANT_STATE_DIR to that one, or CALIBRANT_DATABASE_URL to an empty database."
            )
            raise SettingsError(msg)
