import json
from typing import Any

import pytest

from tests.service.api.monailabel.conftest import Slicer


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("all", {"name": "", "description": "", "objects": {}}),
        ("stats", {"total": 0, "completed": 0, "label_tags": {}, "labels": {}}),
        ("train", []),
    ],
)
def test_the_datastore_is_empty(connected: Slicer, output: str, expected: Any) -> None:  # noqa: ANN401 - JSON
    """The datastore lists nothing, even if the owner has sent scans."""
    status, answer = connected.method("GET", f"/datastore/?output={output}")
    assert (status, json.loads(answer)) == (200, expected)


def test_there_is_no_next_sample(connected: Slicer) -> None:
    """The answer is an object without an id, so that 3D Slicer asks its user to load an image."""
    status, answer = connected.method("POST", "/activelearning/random", json.dumps({"client_id": "user-xyz"}))
    assert (status, json.loads(answer)) == (200, {})


def test_the_log_is_not_shown(connected: Slicer) -> None:
    """The route answers with a sentence that says where the log is."""
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
    """Unsupported routes answer 404, which clients read as idle, and say where to save a label."""
    status, answer = connected.method(method, path)
    problem = json.loads(answer)
    assert (status, problem["type"]) == (404, "/problems/not-offered")
    assert "Save segmentations with the viewer itself" in problem["detail"]
