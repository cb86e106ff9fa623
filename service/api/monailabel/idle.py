"""What of MONAI Label there is not here, answered so that its clients leave it alone: datastore, training, batches, logs."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from service.api.monailabel.door import PREFIX, ViewerDep
from service.errors import NotOffered

router = APIRouter(prefix=PREFIX, include_in_schema=False)


@router.get("/datastore")
def show_datastore(_: ViewerDep, output: Literal["all", "stats", "train"] = "stats") -> Any:  # noqa: ANN401 - a list or an object, as is asked
    """Return a store that holds nothing: scans belong to who sent them, and no list of them is shown."""
    return {
        "all": {"name": "", "description": "", "objects": {}},
        "stats": {"total": 0, "completed": 0, "label_tags": {}, "labels": {}},
        "train": [],
    }[output]


@router.post("/activelearning/{strategy}")
def next_sample(_: ViewerDep, strategy: str) -> dict[str, Any]:
    """Return that there is no sample; 3D Slicer then says to load one's own image."""
    del strategy
    return {}


@router.get("/logs", response_class=PlainTextResponse)
def show_logs(_: ViewerDep) -> Response:
    """Return where the log is."""
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
    """Refuse: 404 is what the clients take for a training that does not run and a batch that there is not.

    Raises:
        NotOffered: always.
    """
    msg = "Calibrant segments for MONAI Label's clients and no more: it stores no images or labels for them, trains nothing and runs no batches here. Save segmentations with the viewer itself; calibrant batch segments whole cohorts."
    raise NotOffered(msg)
