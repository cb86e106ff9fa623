import json
from typing import Any

import pytest

Slicer = Any
"""Of conftest.py: test folders are no packages."""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("all", {"name": "", "description": "", "objects": {}}),
        ("stats", {"total": 0, "completed": 0, "label_tags": {}, "labels": {}}),
        ("train", []),
    ],
)
def test_the_datastore_is_empty(connected: Slicer, output: str, expected: Any) -> None:  # noqa: ANN401 - JSON
    """Also when the owner has sent scans: no list of them is shown."""
    status, answer = connected.method("GET", f"/datastore/?output={output}")
    assert (status, json.loads(answer)) == (200, expected)


def test_there_is_no_next_sample(connected: Slicer) -> None:
    """An object without an id: 3D Slicer says that there are none and asks to load one's own image."""
    status, answer = connected.method("POST", "/activelearning/random", json.dumps({"client_id": "user-xyz"}))
    assert (status, json.loads(answer)) == (200, {})


def test_the_log_is_not_shown(connected: Slicer) -> None:
    """A sentence says where it is."""
    status, answer = connected.method("GET", "/logs/")
    assert status == 200
    assert answer.startswith(b"Calibrant writes its log")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/train/?check_if_running=true"),
        ("POST", "/train/"),
        ("POST", "/train/segmentation"),
        ("DELETE", "/train/"),
        ("GET", "/batch/infer"),
        ("POST", "/batch/infer/hippocampus-mr?images=all"),
        ("DELETE", "/batch/infer"),
        ("PUT", "/datastore/?image=DOE"),
        ("PUT", "/datastore/label?image=DOE&tag=final"),
        ("GET", "/datastore/label?label=DOE&tag=original"),
        ("GET", "/datastore/image?image=DOE"),
        ("POST", "/scoring/dice"),
    ],
)
def test_what_there_is_not_is_a_404_that_says_so(connected: Slicer, method: str, path: str) -> None:
    """404 is idle for a training and none for a batch; who saves a label is told to save it in the viewer."""
    status, answer = connected.method(method, path)
    problem = json.loads(answer)
    assert (status, problem["type"]) == (404, "/problems/not-offered")
    assert "Save segmentations with the viewer itself" in problem["detail"]
