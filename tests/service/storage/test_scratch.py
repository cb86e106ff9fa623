import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.storage.scratch import PREFIX

HOLD = """
import multiprocessing, sys, time
from multiprocessing import util
from service.storage.scratch import scratch
assert str(scratch()) == util.get_temp_dir() == str(scratch())
print(scratch(), flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that has a scratch folder, and lives until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )


@pytest.mark.skipif(len(tempfile.gettempdir()) > 40, reason="paths of sockets are short")
def test_f15_nothing_stays_after_a_process(tmp_path: Path) -> None:
    """A process that ends removes its folder; of one that is killed, the next one does; of one that lives, nobody."""
    with hold(tmp_path) as killed, hold(tmp_path) as living:
        folders = [process.stdout.readline().strip() for process in (killed, living) if process.stdout]
        assert sorted(folders) == sorted(str(path) for path in tmp_path.glob(f"{PREFIX}*"))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with hold(tmp_path) as third:
            assert third.stdout is not None
            assert third.stdout.readline()
            assert not Path(folders[0]).exists()
            assert Path(folders[1]).is_dir()
            third.communicate()
        living.communicate()

    assert list(tmp_path.iterdir()) == []
