"""The database of the jobs: a SQLite file in the state directory, or a database of a PostgreSQL server.

Jobs and results belong together: a result without a job is erased at the next start. So a PostgreSQL database is bound
to one state directory for as long as the directory holds anything: both store the same random name. A lock on the
server keeps a second service away, even one on a copy of the directory.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import psycopg
import sqlalchemy
import structlog
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event, exc

from service.errors import CalibrantError, DatabaseBusy, SettingsError, StorageFault, StorageFull
from service.storage.local import StateDirectory

log = structlog.get_logger(__name__)

CONNECT_S: Final = 5
"""Seconds within which a server must accept a connection, and acknowledge what is sent."""

WATCH_S: Final = 0.5
"""Seconds between two checks of the server."""

LEASE_S: Final = 10
"""Seconds without a check after which the server releases the lock: the machine of the service has died."""

BUSY_S: Final = 5
"""Seconds for which a statement waits while another program locks the SQLite file."""

TRIAL_S: Final = 3
"""The same, for a trial whether it can be written."""

HURRIED: Final = ContextVar("hurried", default=False)
"""Whether somebody waits for the answer: then an error is better than a long wait."""

_TIDY_SINCE: Final = 1
"""`user_version` of a SQLite file in which deleted rows were always overwritten."""

# An arbitrary number that no other program is likely to lock.
_LOCK: Final = 0x63616C696272


class JobDatabase:
    """The database of the jobs."""

    def __init__(self, address: str) -> None:
        self.address: Final = address
        """SQLAlchemy URL, for DBOS."""
        self.reachable = True
        """Whether the database answered the last check."""
        self.schema: str | None = None
        """Schema of DBOS's tables."""
        self.engine = self._new_engine()
        """Connections for statements of our own."""
        self._ended = threading.Event()

    def hold(self) -> None:
        """Keep other services away until `release`."""
        self._ended.clear()

    def release(self) -> None:
        """Let other services use the database."""
        self._ended.set()
        self.engine.dispose()

    def rows(self, statement: sqlalchemy.Select[*tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        """Return the rows of a query; it waits for a server that has gone away, as everything in DBOS does."""
        while True:
            try:
                with self.engine.connect() as connection:
                    return [tuple(row) for row in connection.execute(statement)]
            except (exc.OperationalError, exc.InterfaceError):
                if self._ended.wait(WATCH_S):
                    raise

    def index(self, statements: Iterable[str]) -> None:
        """Create indexes; each statement creates one, unless it exists."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))

    def forget(self) -> None:
        """Leave no copy of a row that was deleted, at once or at the next `tidy`."""

    def tidy(self) -> None:
        """Do what `forget` could not do because somebody was reading."""

    def trouble(self) -> CalibrantError | None:
        """Return why nothing can be written now; None if it can."""
        return None if self.reachable else StorageFault("The database of the jobs does not answer.")

    def _new_engine(self) -> sqlalchemy.Engine:
        raise NotImplementedError


class SqliteDatabase(JobDatabase):
    """A SQLite file in the state directory.

    What a request asks for fails within seconds while another program locks the file, or the disk fails. Whatever else
    meets that - a job that ends, a queue - waits until it works again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self._path = path
        self.await_repair: Callable[[], bool] = lambda: True
        """Waits until the database can be written again; returns False if the service ends first."""
        self.note: Callable[[CalibrantError], None] = lambda _: None
        """Told what fails."""
        self._untidy = False

    def forget(self) -> None:
        """Leave no copy of a row that was deleted, at once or at the next `tidy`.

        Deleted rows are overwritten (secure_delete), but stay in the write-ahead log until it is written back and cut.
        """
        self._untidy = True
        self.tidy()

    def tidy(self) -> None:
        """Do what `forget` could not do because somebody was reading."""
        if not self._untidy:
            return
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._path, timeout=0)) as connection:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._untidy = bool(busy)

    def trouble(self) -> CalibrantError | None:
        """Return why nothing can be written now; None if it can."""
        try:
            with closing(sqlite3.connect(self._path, TRIAL_S, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            return trouble_of(error)
        return None

    def _new_engine(self) -> sqlalchemy.Engine:
        # As many connections as threads that answer requests, and some for the queues.
        engine = sqlalchemy.create_engine(self.address, pool_size=60, max_overflow=0)
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "handle_error", self._on_error)
        return engine

    def _on_error(self, context: sqlalchemy.ExceptionContext) -> None:
        error = context.original_exception
        trouble = trouble_of(error) if isinstance(error, sqlite3.Error) else None
        if trouble is None:
            return
        self.note(trouble)
        if HURRIED.get():
            raise trouble from error
        if context.connection is not None:  # a transaction must not hold up what repairs the disk
            with suppress(sqlite3.Error, exc.SQLAlchemyError):
                context.connection.connection.rollback()
        if self.await_repair():
            # DBOS repeats what failed with this text, and nothing else.
            raise sqlite3.OperationalError("database is locked") from error  # noqa: TRY003, EM101 - as said


def trouble_of(error: sqlite3.Error) -> CalibrantError | None:
    """Return the error of ours that an error of SQLite means; None for one that is not about the file or its disk."""
    code = getattr(error, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusy("Another program locks the database of the jobs. Try again in a few seconds.")
    if kind == sqlite3.SQLITE_FULL:
        return StorageFull("The state directory has no space left. Try again later, or tell the operator.")
    if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB):
        return StorageFault(f"The database of the jobs cannot be used ({error.sqlite_errorname}). Tell the operator.")
    return None


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    """Set up a connection: writers take turns, every commit is flushed, and what is erased is overwritten."""
    connection.isolation_level = "IMMEDIATE"
    for pragma in (f"busy_timeout={BUSY_S * 1000}", "foreign_keys=ON", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


class PostgresqlDatabase(JobDatabase):
    """A database of a PostgreSQL server, which may go away and come back."""

    def __init__(self, address: str, url: str) -> None:
        super().__init__(address)
        self.schema = "dbos"
        self._url = url
        self._connection: psycopg.Connection | None = None
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """Take the lock, and begin to check the server periodically.

        Raises:
            SettingsError: another service has the lock, or the server cannot be reached.
        """
        if not event.contains(sqlalchemy.Engine, "handle_error", _say_that_no_connection_was_made):
            event.listen(sqlalchemy.Engine, "handle_error", _say_that_no_connection_was_made)
        with _told_without_address():
            self._lock()
        super().hold()
        self._thread = threading.Thread(target=self._watch, name="calibrant-database", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """End the checks and release the lock."""
        super().release()
        if self._thread is not None:
            self._thread.join()
        self._disconnect()

    def _new_engine(self) -> sqlalchemy.Engine:
        # DBOS, too, means this driver by `postgresql://`.
        url = sqlalchemy.make_url(self.address).set(drivername="postgresql+psycopg")
        return sqlalchemy.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_S})

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_S):
            try:
                if self._connection is None:
                    self._lock()
                else:
                    self._connection.execute("SELECT 1")
            except (psycopg.Error, SettingsError) as error:
                self._disconnect()
                if self.reachable:
                    log.warning("database lost", error=type(error).__name__)
                self.reachable = False
            else:
                if not self.reachable:
                    log.info("database found again")
                self.reachable = True

    def _lock(self) -> None:
        connection = _connect(self._url)
        try:
            # Without a unit, PostgreSQL reads milliseconds.
            connection.execute(f"SET idle_session_timeout = {LEASE_S * 1000}")
            _reject_second_service(connection, "pg_try_advisory_lock")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def open_database(state: StateDirectory, postgresql_url: str | None) -> JobDatabase:
    """Return the database of a state directory, ready for DBOS.

    Args:
        state: directory of the scans and results.
        postgresql_url: URL of a PostgreSQL database; None for SQLite.

    Raises:
        SettingsError: the server cannot be reached, another service uses the database, or the jobs of this directory
            are in another database.
    """
    if postgresql_url is None:
        _leave_servers(state)
        _use_write_ahead_log(state)
        return SqliteDatabase(state.database)
    with _told_without_address(), _connect(postgresql_url) as connection:
        with connection.transaction():
            _claim(connection, state)
        return PostgresqlDatabase(_address(postgresql_url, connection.info), postgresql_url)


def _use_write_ahead_log(state: StateDirectory) -> None:
    # The file keeps this setting. With the default rollback journal, readers block the writer. Every commit is still
    # flushed: SQLite's default is synchronous=FULL.
    try:
        with closing(sqlite3.connect(state.database)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            (written_by,) = database.execute("PRAGMA user_version").fetchone()
            if written_by < _TIDY_SINCE:  # an earlier version left what it deleted
                database.execute("VACUUM")
                database.execute(f"PRAGMA user_version={_TIDY_SINCE}")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        msg = (
            f"The database {state.database} cannot be used ({error.sqlite_errorname}). Stop whatever else uses it, make "
            "room on its disk, or restore a backup (docs/operations.md)."
        )
        raise SettingsError(msg) from error


def _leave_servers(state: StateDirectory) -> None:
    """Let a directory without cases change from PostgreSQL to SQLite."""
    if not state.is_named:
        return
    if state.holds_cases:
        msg = (
            "The jobs of this state directory are in a PostgreSQL database. Set CALIBRANT_DATABASE_URL to its address, "
            "or CALIBRANT_STATE_DIR to an empty directory."
        )
        raise SettingsError(msg)
    state.forget_name()


def _claim(connection: psycopg.Connection, state: StateDirectory) -> None:
    """Bind an empty database to an empty directory, or check that the two belong together."""
    _reject_second_service(connection, "pg_try_advisory_xact_lock")
    connection.execute("CREATE TABLE IF NOT EXISTS calibrant_state_directory (id text PRIMARY KEY)")
    owner = connection.execute("SELECT id FROM calibrant_state_directory").fetchone()
    if owner is not None:
        if not state.is_named or owner[0] != state.identity:
            msg = (
                "The database of CALIBRANT_DATABASE_URL belongs to another state directory, where its results lie. "
                "Set CALIBRANT_STATE_DIR to that one, or CALIBRANT_DATABASE_URL to an empty database."
            )
            raise SettingsError(msg)
        return
    if state.holds_cases:
        msg = (
            "The database of CALIBRANT_DATABASE_URL is new, but this state directory holds cases, whose jobs are in "
            "another database or in SQLite. Set CALIBRANT_DATABASE_URL to that database, or to nothing for SQLite, or "
            "CALIBRANT_STATE_DIR to an empty directory."
        )
        raise SettingsError(msg)
    # A new name for the pair: a database that the directory was bound to before must no longer match.
    state.forget_name()
    connection.execute("INSERT INTO calibrant_state_directory VALUES (%s)", [state.identity])


def _reject_second_service(connection: psycopg.Connection, function: str) -> None:
    locked = connection.execute(f"SELECT {function}({_LOCK})".encode()).fetchone()
    if locked != (True,):
        msg = (
            "Another calibrant serve uses the database of CALIBRANT_DATABASE_URL. Stop it, or give this one an empty "
            f"database. If its machine has died, wait {LEASE_S} seconds."
        )
        raise SettingsError(msg)


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S, tcp_user_timeout=CONNECT_S * 1000)


def _address(url: str, info: psycopg.ConnectionInfo) -> str:
    """Return a SQLAlchemy URL that means what the URL means to libpq; the two read lists of hosts differently."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    user, database = quote(info.user, safe=""), quote(info.dbname, safe="")
    password = f":{quote(parts['password'], safe='')}" if "password" in parts else ""
    # For hosts without ports, libpq reports a list of empty ports.
    rest = {
        name: value for name, value in parts.items() if name not in {"user", "password", "dbname"} and value.strip(",")
    }
    return f"postgresql://{user}{password}@/{database}?{urlencode(rest, quote_via=quote)}"


@contextmanager
def _told_without_address() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        # The error's text may hold the address, which may hold a password.
        msg = (
            f"The database of CALIBRANT_DATABASE_URL cannot be used (SQLSTATE {error.sqlstate or 'none: no connection'}). "
            "Check whether the server runs, whether user, password and database of the address exist there, and whether "
            "the user may create tables."
        )
        raise SettingsError(msg) from None


def _say_that_no_connection_was_made(context: sqlalchemy.ExceptionContext) -> None:
    # DBOS repeats what failed for lack of a connection. It recognises that by the error's text, but does not know libpq's
    # texts for a socket without a server or a host without an address: a job that ended meanwhile stayed `running`.
    if context.connection is None and isinstance(context.original_exception, psycopg.OperationalError):
        context.is_disconnect = True
