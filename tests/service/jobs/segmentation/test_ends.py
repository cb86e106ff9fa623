import asyncio
import concurrent.futures
import threading
import time

from service.jobs.segmentation.ends import Ends


def test_an_end_wakes_every_waiting_thread() -> None:
    """All of them return long before their time is over."""
    ends = Ends()
    ended = ends.next
    threads = [threading.Thread(target=concurrent.futures.wait, args=([ended], 30)) for _ in range(3)]
    for thread in threads:
        thread.start()

    ends.tell()

    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_an_end_between_look_and_wait_is_not_missed() -> None:
    """A future that was taken before the end is done; the next one is not."""
    ends = Ends()
    ended = ends.next
    ends.tell()

    assert ended.done()
    assert not ends.next.done()


def test_an_end_wakes_a_coroutine() -> None:
    """A job ends in another thread than the event loop's."""

    async def wait() -> None:
        ends = Ends()
        waiter = asyncio.wrap_future(ends.next)
        threading.Timer(0.1, ends.tell).start()
        await asyncio.wait_for(waiter, 5)

    asyncio.run(wait())


def test_whoever_gives_up_leaves_the_others_waiting() -> None:
    """A coroutine that cancels its future does not wake or break the others."""

    async def give_up(ends: Ends) -> None:
        waiter = asyncio.wrap_future(ends.next)
        await asyncio.wait([waiter], timeout=0.01)
        waiter.cancel()

    ends = Ends()
    ended = ends.next
    asyncio.run(give_up(ends))
    assert not ended.done()

    ends.tell()
    assert ended.result(0) is None


def test_a_wait_for_nothing_ends_in_time() -> None:
    """Without an end, the wait takes as long as it may."""
    ends = Ends()

    started = time.monotonic()
    concurrent.futures.wait([ends.next], 0.1)

    assert 0.1 <= time.monotonic() - started < 5
