import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.executors import memory
from service.executors.memory import machine_memory_bytes, ran_out_of_memory


def test_a_container_may_have_less_than_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The control group's limit counts if it is less than the machine's memory; `max` is no limit."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024

    assert machine_memory_bytes() == total
    for text, expected in (("max\n", total), (f"{2**60}\n", total), ("1073741824\n", 1 << 30)):
        limit.write_text(text)
        assert machine_memory_bytes() == expected


@pytest.mark.parametrize("what", ["bytearray(1 << 30)", "numpy.ones(1 << 27)", "torch.ones(1 << 28)"])
def test_over_the_ceiling_every_allocation_is_refused_and_recognised(what: str) -> None:
    """Allocations of Python, numpy and torch fail with a recognised error, and the process lives on."""
    code = (
        "import numpy, torch; from service.executors.memory import limit_memory, ran_out_of_memory\n"
        "limit_memory(600 << 20)\n"
        f"try:\n    {what}\nexcept Exception as error:\n    print(ran_out_of_memory(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "True\n"


def test_other_errors_are_not_taken_for_it() -> None:
    """A RuntimeError about shapes is not taken for a lack of memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)

    assert not ran_out_of_memory(caught.value)
