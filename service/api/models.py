"""`/v1/models`: what is installed, whether it can be served, and what is known about how far to trust it."""

from fastapi import APIRouter

from service.api.deps import OwnerDep, PartsDep
from service.api.problems import RESPONSES
from service.bundle.description import BundleDescription
from service.bundle.registry import DEFAULT_MODEL
from service.bundle.statement import state
from service.schemas import Model, Models

router = APIRouter(prefix="/v1/models", tags=["models"], responses=RESPONSES)


@router.get("", operation_id="listModels")
def list_models(parts: PartsDep, _: OwnerDep) -> Models:
    """Return every installed model, those that cannot be served with the reason why."""
    ready = [_describe(description) for description in parts.registry.ready.values()]
    broken = [Model(name=name, ready=False, why_not=why) for name, why in parts.registry.broken.items()]
    return Models(models=ready + broken, default=DEFAULT_MODEL)


@router.get("/{name}", operation_id="getModel")
def get_model(name: str, parts: PartsDep, _: OwnerDep) -> Model:
    """Return one installed model."""
    return _describe(parts.registry.find(name))


def _describe(description: BundleDescription) -> Model:
    config = description.config
    return Model(
        name=config.name,
        ready=True,
        why_not=None,
        identity=description.identity,
        version=config.version,
        description=config.description,
        modality=config.modality,
        anatomy=config.anatomy,
        spacing_mm=config.spacing_mm,
        labels={label.value: label.name for label in config.labels},
        statement=state(description.card, description.card.measurements[0], reasons=[]),
    )
