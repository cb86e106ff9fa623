import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.bundle.description import BundleDescription, describe_bundle
from service.engines.devices import Device
from service.errors import DeviceUnavailable, JobCancelled, SettingsError
from service.executors.embedded import EmbeddedExecutor, ExecutorStopped
from service.executors.pool import ExecutorPool
from service.settings import Settings


class Stand(EmbeddedExecutor):
    """An executor without a process; a test decides whether its device computes."""

    def __init__(self, name: str) -> None:
        super().__init__(device=Device(name), deadline_s=1.0)
        self.works = True
        self.started = 0
        self.forgotten: list[BundleDescription] = []

    @property
    def ready(self) -> bool:
        """As the test decides."""
        return self.works and self.why_not is None

    def start(self) -> None:
        """Count."""
        self.started += 1

    def fail(self, why: str) -> None:
        """Rest, as after failures."""
        self.why_not = why
        self.judged.set()

    def forget(self, bundle: BundleDescription) -> None:
        """Note the bundle."""
        self.forgotten.append(bundle)


@pytest.fixture
def stands() -> list[Stand]:
    """Return the executors of two GPUs."""
    return [Stand("cuda:0"), Stand("cuda:1")]


@pytest.fixture
def pool(stands: list[Stand]) -> Iterator[ExecutorPool]:
    """Yield their pool."""
    pool = ExecutorPool(stands)
    yield pool
    pool.stop()


class Waiter:
    """A case in a thread of its own that takes a device and keeps it until it is told to end."""

    def __init__(self, pool: ExecutorPool, check: Callable[[], None] = lambda: None) -> None:
        self.device = ""
        self.error: BaseException | None = None
        self._pool, self._check = pool, check
        self._end = threading.Event()
        self._has = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._pool.lend(self._check) as executor:
                self.device = executor.device.name
                self._has.set()
                self._end.wait(20)
        except BaseException as error:  # noqa: BLE001 - which one is the question
            self.error = error
            self._has.set()

    def has_device(self, seconds: float = 5.0) -> bool:
        """Return whether it has a device, or was refused one, within so many seconds."""
        return self._has.wait(seconds)

    def end(self) -> None:
        """Give the device back."""
        self._end.set()
        self.thread.join(20)


def test_each_case_gets_a_device_of_its_own_in_the_order_of_coming(pool: ExecutorPool) -> None:
    """Two compute at once; the third gets the device that is given back first, and then the fourth."""
    first, second = Waiter(pool), Waiter(pool)
    assert first.has_device()
    assert second.has_device()
    assert {first.device, second.device} == {"cuda:0", "cuda:1"}
    third = Waiter(pool)
    time.sleep(0.05)
    fourth = Waiter(pool)
    assert not third.has_device(0.3)

    second.end()
    assert third.has_device()
    assert third.device == second.device
    assert not fourth.has_device(0.3)
    first.end()
    assert fourth.has_device()
    assert fourth.device == first.device
    third.end()
    fourth.end()


def test_a_failing_device_does_not_hold_up_the_others(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Its cases go to the other; the service is ready as long as one computes."""
    stands[0].fail("cuda:0 failed.")

    assert (pool.ready, pool.working, pool.size, pool.why_not) == (True, 1, 2, None)
    for _ in range(2):
        case = Waiter(pool)
        assert case.has_device()
        assert case.device == "cuda:1"
        case.end()


def test_a_case_waits_until_a_device_computes(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Without one the pool is not ready and says why, once for equal reasons; the case gets the first that comes back."""
    for stand in stands:
        stand.fail("The driver is gone.")
    assert (pool.ready, pool.why_not) == (False, "The driver is gone.")
    case = Waiter(pool)
    assert not case.has_device(0.3)

    stands[1].why_not = None
    assert case.has_device()
    assert case.device == "cuda:1"
    case.end()


def test_devices_that_still_start_are_not_ready_and_have_no_reason(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Only a device that was judged has one."""
    for stand in stands:
        stand.works = False
    stands[0].fail("cuda:0 failed.")

    assert (pool.ready, pool.why_not) == (False, None)


def test_a_check_ends_the_wait(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Whoever waits behind gets the device."""
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            msg = "Cancelled."
            raise JobCancelled(msg)

    for stand in stands:
        stand.works = False
    waits, behind = Waiter(pool, check), Waiter(pool)
    assert not waits.has_device(0.2)
    cancelled.set()
    assert waits.has_device()
    assert isinstance(waits.error, JobCancelled)

    stands[0].works = True
    assert behind.has_device()
    behind.end()


def test_stopping_ends_every_wait(pool: ExecutorPool, stands: list[Stand]) -> None:
    """As the service ends."""
    for stand in stands:
        stand.works = False
    waits = Waiter(pool)
    pool.stop()

    assert waits.has_device()
    assert isinstance(waits.error, ExecutorStopped)
    with pytest.raises(ExecutorStopped), pool.lend():
        pass


def test_a_pool_starts_once(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Starting it again, as the application does after the command, changes nothing."""
    pool.start()
    pool.start()

    assert [stand.started for stand in stands] == [1, 1]


def test_the_verdict_is_that_of_the_first_device_that_computes(pool: ExecutorPool, stands: list[Stand]) -> None:
    """Or that of all, if none does; it is waited for."""
    for stand in stands:
        stand.works = False
    threading.Timer(0.2, lambda: setattr(stands[1], "works", True)).start()
    pool.await_verdict()

    for stand in stands:
        threading.Timer(0.2, stand.fail, [f"{stand.device.name} is missing."]).start()
    stands[1].works = False
    with pytest.raises(DeviceUnavailable, match=r"^cuda:0 is missing\. cuda:1 is missing\.$"):
        pool.await_verdict()


def test_a_processor_needs_no_verdict() -> None:
    """It is there; the service need not wait for torch to be imported."""
    cpu = Stand("cpu")
    cpu.works = False

    ExecutorPool([cpu]).await_verdict()


def test_every_child_forgets(pool: ExecutorPool, stands: list[Stand], tiny_bundle: Path) -> None:
    """Each holds its own copy of the network."""
    bundle = describe_bundle(tiny_bundle)
    pool.forget(bundle)

    assert [stand.forgotten for stand in stands] == [[bundle], [bundle]]


def test_settings_name_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One executor for each; processes on the processor share its memory."""
    monkeypatch.setattr("service.executors.pool.machine_memory_bytes", lambda: 8 << 30)
    pool = ExecutorPool.of(Settings(state_dir=tmp_path, device="cpu*2,cuda:1"), warm=None)

    assert pool.names == ("cpu", "cpu", "cuda:1")
    assert [executor._terms.memory_bytes for executor in pool._executors] == [4 << 30] * 3
    with pytest.raises(SettingsError, match="CALIBRANT_DEVICE"):
        ExecutorPool.of(Settings(state_dir=tmp_path, device="gpu"), warm=None)
