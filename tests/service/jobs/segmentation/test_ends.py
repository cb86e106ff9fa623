import threading
import time

from service.jobs.segmentation.ends import Ends


def test_who_waits_is_woken_at_once() -> None:
    """Long before its time is over, and so is everybody else."""
    ends = Ends()
    threads = [threading.Thread(target=ends.wait, args=(ends.count, 30)) for _ in range(3)]
    for thread in threads:
        thread.start()

    ends.tell()

    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_an_end_between_look_and_wait_is_not_missed() -> None:
    """Who saw fewer ends than were told does not wait at all."""
    ends = Ends()
    seen = ends.count
    ends.tell()

    started = time.monotonic()
    ends.wait(seen, 30)

    assert time.monotonic() - started < 5
    assert ends.count == seen + 1


def test_nobody_waits_longer_than_asked() -> None:
    """Nothing ends."""
    ends = Ends()

    started = time.monotonic()
    ends.wait(ends.count, 0.1)

    assert 0.1 <= time.monotonic() - started < 5
