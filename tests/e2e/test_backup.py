"""A backup that was made while the service ran is restored, and the alarms name metrics that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.jobs.segmentation.status import WorkflowInput
from service.observability.metrics import Metrics
from tests.service.jobs.conftest import Service

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(120)
def test_a_restored_copy_serves_its_jobs(tmp_path: Path) -> None:
    """The finished job has its result, the running and the waiting one are done, and what came after the backup is not there."""
    registry = Registry.scan(SHIPPED)
    model = registry.find(DEFAULT_MODEL).identity
    service = Service(tmp_path / "state", registry)
    copy = tmp_path / "copy"
    try:
        queue = service.launch()

        def submit(text: str) -> str:
            return queue.submit(WorkflowInput("local", service.store(text), model, ("mask", "summary"))).id

        done = queue.wait("local", submit("done"), 20)
        left = [submit("slow"), submit("waits")]
        assert service.executor.entered.wait(10)
        subprocess.run([ROOT / "deploy" / "backup.sh", service.state.root, copy], check=True)
        late = submit("late")
    finally:
        service.executor.released.set()
        service.close()

    restored = Service(copy, registry)
    try:
        queue = restored.launch()
        restored.executor.released.set()
        assert queue.find("local", done.id) == done
        assert (copy / "results" / done.id / "mask").read_text() == "done"
        assert [queue.wait("local", job, 20).state for job in left] == ["succeeded", "succeeded"]
        assert late not in [job.id for job in queue.page("local", None, None, 9)]
    finally:
        restored.close()


def test_alarms_name_metrics_that_exist_and_are_explained() -> None:
    """Each rule is about metrics of the service, and docs/operations.md says what to do."""
    rules = (ROOT / "deploy" / "alerts.yaml").read_text()
    page = (ROOT / "docs" / "operations.md").read_text()

    named = set(re.findall(r"calibrant_\w+", rules))
    assert named <= set(re.findall(r"`(calibrant_\w+)`", Metrics.__doc__ or ""))
    alarms = re.findall(r"alert: (\w+)", rules)
    assert len(alarms) == 7
    assert all(f"| {alarm} |" in page for alarm in alarms)
