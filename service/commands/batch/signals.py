"""The signals that interrupt a batch, kept from the processes that compute: a Ctrl-C reaches the whole process group."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)


def block_interrupts() -> None:
    """Block them in this thread, and in the threads and processes that it starts.

    multiprocessing unblocks them when it starts its resource tracker, so that this must already run.
    """
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block them for a while; what came meanwhile arrives at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    block_interrupts()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
