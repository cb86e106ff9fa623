import signal
import subprocess
import sys

from service.commands.batch.signals import INTERRUPTS, interrupts_blocked


def _blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_a_process_that_is_started_meanwhile_does_not_hear_them() -> None:
    """It inherits the mask; this thread hears them again afterwards."""
    before = _blocked()
    code = "import signal; print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))"
    with interrupts_blocked():
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(INTERRUPTS) <= set(map(int, started.stdout.split()))
    assert _blocked() == before
