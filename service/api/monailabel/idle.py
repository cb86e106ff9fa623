"""MONAI Label routes that this service does not implement (datastore, training, batches, logs), answered so that clients accept it."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from service.api.monailabel.door import PREFIX, ViewerDep
from service.errors import NotOffered

router = APIRouter(prefix=PREFIX, include_in_schema=False)


@router.get("/datastore")
def show_datastore(_: ViewerDep, output: Literal["all", "stats", "train"] = "stats") -> Any:  # noqa: ANN401 - a list or an object, by `output`
    """Return an empty store: scans belong to whoever sent them, and are not listed."""
    return {
        "all": {"name": "", "description": "", "objects": {}},
        "stats": {"total": 0, "completed": 0, "label_tags": {}, "labels": {}},
        "train": [],
    }[output]


@router.post("/activelearning/{strategy}")
def next_sample(_: ViewerDep, strategy: str) -> dict[str, Any]:
    """Return no sample; 3D Slicer then tells its user to load an image."""
    del strategy
    return {}


@router.get("/logs", response_class=PlainTextResponse)
def show_logs(_: ViewerDep) -> Response:
    """Return a text that says where the log is."""
    return PlainTextResponse(
        "Calibrant writes its log to its standard error; the operator of this service can read it.\n"
    )


@router.api_route("/datastore", methods=["PUT", "DELETE"])
@router.api_route("/datastore/{part:path}", methods=["GET", "HEAD", "PUT", "DELETE"])
@router.api_route("/train", methods=["GET", "POST", "DELETE"])
@router.api_route("/train/{part:path}", methods=["GET", "POST", "DELETE"])
@router.api_route("/batch/{part:path}", methods=["GET", "POST", "DELETE"])
@router.api_route("/scoring/{part:path}", methods=["GET", "POST", "DELETE"])
def refuse(_: ViewerDep) -> None:
    """Refuse with 404, which the clients take for a training or a batch that is not running.

    Raises:
        NotOffered: always.
    """
    msg = "Calibrant only segments for MONAI Label's clients: it stores no images or labels for them, trains nothing and runs no batches here. Save segmentations with the viewer itself; calibrant batch segments whole cohorts."
    raise NotOffered(msg)
