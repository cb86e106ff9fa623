"""The contract suite of the job database: the same promises on SQLite and on PostgreSQL."""

from pathlib import Path

import pytest
import sqlalchemy

from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.jobs.database import open_database
from service.jobs.segmentation.status import WorkflowInput
from service.storage.local import StateDirectory
from tests.service.jobs.conftest import Service


class JobDatabaseContract:
    """Contract of either database; a subclass provides the fixtures `state`, an empty directory, and `url`."""

    @pytest.fixture
    def url(self) -> str | None:
        """Return the URL of an empty PostgreSQL database; None for SQLite."""
        raise NotImplementedError

    def test_a_directory_finds_its_database_again(self, state: StateDirectory, url: str | None) -> None:
        """The address is the same at every start, also once the directory holds cases."""
        address = open_database(state, url).address
        (state.results / "job").mkdir()

        assert open_database(state, url).address == address

    def test_the_address_is_understood_by_sqlalchemy(self, state: StateDirectory, url: str | None) -> None:
        """DBOS connects by the address."""
        address = sqlalchemy.make_url(open_database(state, url).address)
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(address)

        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
        engine.dispose()

    def test_a_released_database_can_be_held_again(self, state: StateDirectory, url: str | None) -> None:
        """A held database is reachable, and free for the next service once it is released."""
        for _ in range(2):
            database = open_database(state, url)
            database.hold()
            assert database.reachable
            database.release()

    def test_jobs_survive_a_restart(self, tmp_path: Path, url: str | None) -> None:
        """A job that is done, and its key, are the same in the next life of the service."""
        registry = Registry.scan(SHIPPED)
        service = Service(tmp_path / "service", registry, url)
        try:
            jobs = service.launch()
            order = WorkflowInput(
                "local", service.store("good"), registry.find(DEFAULT_MODEL).identity, ("mask", "summary")
            )
            done = jobs.wait("local", jobs.submit(order, idempotency_key="key").id, 30)
            assert done.state == "succeeded"
            service.close()

            jobs = service.launch()
            assert jobs.find("local", done.id) == done
            assert jobs.submit(order, idempotency_key="key") == done
            assert jobs.page("local", None, None, 9) == [done]
        finally:
            service.close()
