import subprocess
import sys

from service import __version__


def test_python_m_service_is_the_command() -> None:
    """`python -m service --version` prints the same as `calibrant --version`."""
    command = [sys.executable, "-m", "service", "--version"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)

    assert child.stdout == f"calibrant {__version__}\n"
    assert child.stderr == ""
