"""`/monailabel/info`: the installed models in MONAI Label's terms."""

from typing import Any

from fastapi import APIRouter

from service import __version__
from service.api.deps import ServicesDep
from service.api.monailabel.door import PREFIX, ViewerDep
from service.bundle.description import BundleDescription
from service.schemas import RESEARCH_USE_ONLY

router = APIRouter(prefix=PREFIX, include_in_schema=False)


@router.get("/info")
def show_info(services: ServicesDep, _: ViewerDep) -> dict[str, Any]:
    """Return every model in service, as of the type that runs without a user's points or strokes.

    There is no `config` at the top level: 3D Slicer takes that for an outdated server. Without trainers, strategies and
    scoring, the clients leave those panels empty.
    """
    models = {name: _model(description) for name, description in sorted(services.registry.ready.items())}
    return {
        "name": "Calibrant",
        "description": f"Segmentation that says how far it can be trusted. {RESEARCH_USE_ONLY}",
        "version": __version__,
        "labels": list(dict.fromkeys(label for model in models.values() for label in model["labels"])),
        "models": models,
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {"total": 0, "completed": 0},
    }


def _model(description: BundleDescription) -> dict[str, Any]:
    config = description.config
    return {
        "type": "segmentation",
        # No background: the clients make a segment of each label.
        "labels": {label.name: label.value for label in config.every_label if label.value},
        "dimension": 3,
        "description": f"{config.description} {RESEARCH_USE_ONLY}",
        "config": {},
    }
