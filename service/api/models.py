"""`/v1/models`: the installed models, whether they can be served, and their calibration cards."""

import threading
from typing import Annotated, Final, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response, status

from service.api.deps import AdministratorDep, OwnerDep, ServicesDep
from service.api.negotiation import choose
from service.api.problems import RESPONSES
from service.bundle.card import CalibrationCard, Interval
from service.bundle.description import BundleDescription
from service.bundle.figures import draw_reliability
from service.bundle.registry import DEFAULT_MODEL
from service.bundle.reliability import reliability_of
from service.bundle.schema import Code
from service.bundle.site import site_figures
from service.bundle.statement import statement_about
from service.errors import NotAcceptable, SettingsError
from service.schemas import (
    Card,
    CardMeasurement,
    Figure,
    LabelDetail,
    Model,
    Models,
    Reliability,
    SiteCases,
    SiteFigures,
)

router = APIRouter(prefix="/v1/models", tags=["models"], responses=RESPONSES)

ReliabilityFormat = Literal["json", "png", "svg"]

_FORMATS: Final[dict[str, ReliabilityFormat]] = {
    "application/json": "json",
    "image/png": "png",
    "image/svg+xml": "svg",
}

_MEDIA_TYPES: Final = {form: media_type for media_type, form in _FORMATS.items()}

FormatQuery = Annotated[ReliabilityFormat | None, Query(alias="format", description="Takes precedence over Accept.")]

# matplotlib's settings are global: one thread at a time may draw.
_DRAWING: Final = threading.Lock()

# Held while the registry and its record in the state directory change together.
_CHANGING: Final = threading.Lock()

_PICTURES: Final[dict[str, dict[str, str]]] = {"image/png": {}, "image/svg+xml": {}}


@router.get("", operation_id="listModels")
def list_models(services: ServicesDep, _: OwnerDep) -> Models:
    """Return every installed model; one that cannot be served says why."""
    ready = [_describe(description) for description in list(services.registry.ready.values())]
    unloaded = [_out_of_service(description) for description in list(services.registry.unloaded.values())]
    broken = [Model(name=name, ready=False, why_not=why) for name, why in list(services.registry.broken.items())]
    return Models(models=ready + unloaded + broken, default=DEFAULT_MODEL)


@router.get("/{name}", operation_id="getModel")
def get_model(name: str, services: ServicesDep, _: OwnerDep) -> Model:
    """Return one installed model with its calibration card."""
    unloaded = services.registry.unloaded.get(name)
    description = unloaded or services.registry.find(name)
    model = _out_of_service(description) if unloaded else _describe(description)
    return model.model_copy(update={"card": _card(description.card)})


@router.post("/{name}/load", operation_id="loadModel")
def load_model(name: str, services: ServicesDep, _: AdministratorDep, tasks: BackgroundTasks) -> Model:
    """Serve a bundle as it is on the disk now: a new one, a new version, or one that was taken out of service.

    A new version replaces the earlier one; jobs that wait for the earlier one fail.
    """
    with _CHANGING:
        earlier = services.registry.ready.get(name)
        description = services.registry.load(name)
        services.state.remember_unloaded(services.registry.unloaded)
    if earlier is not None and earlier.identity != description.identity:
        tasks.add_task(services.jobs.executor.forget, earlier)
    return _describe(description)


@router.post("/{name}/unload", operation_id="unloadModel")
def unload_model(name: str, services: ServicesDep, _: AdministratorDep, tasks: BackgroundTasks) -> Model:
    """Take a model out of service until it is loaded again: its running case is finished, its waiting jobs fail."""
    with _CHANGING:
        description = services.registry.unload(name)
        services.state.remember_unloaded(services.registry.unloaded)
    tasks.add_task(services.jobs.executor.forget, description)
    return _out_of_service(description)


@router.get(
    "/{name}/reliability",
    operation_id="getReliability",
    response_model=Reliability,
    responses={200: {"content": _PICTURES}},
)
def get_reliability(
    request: Request, name: str, services: ServicesDep, _: OwnerDep, form: FormatQuery = None
) -> Response:
    """Return the reliability diagram of the card's cases: as JSON, or drawn as PNG or SVG."""
    description = services.registry.unloaded.get(name) or services.registry.find(name)
    chosen = choose(request, form, _FORMATS)
    # Weak: the bundle's identity determines the diagram's data, but its drawing may change with the version.
    headers = {"ETag": f'W/"{description.sha256}-{chosen}"', "Vary": "Accept"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    reliability = _reliability(description)
    content = reliability.model_dump_json().encode() if chosen == "json" else _drawn(reliability, chosen)
    return Response(content, media_type=_MEDIA_TYPES[chosen], headers=headers)


@router.post("/{name}/site-figures", operation_id="siteFigures")
def compare_site(name: str, cases: SiteCases, services: ServicesDep, _: OwnerDep) -> SiteFigures:
    """Pool images that `measureAgainstReference` measured: the site's figures beside the card's, tested for a difference.

    Nothing is kept: the caller sends the measured documents, and says whose images they are.
    """
    description = services.registry.find(name)
    return site_figures(description.card, description.identity, cases.cases)


def _drawn(reliability: Reliability, picture_format: Literal["png", "svg"]) -> bytes:
    try:
        with _DRAWING:
            return draw_reliability(reliability, picture_format)
    except SettingsError as error:
        msg = "This service has no matplotlib, so it draws no pictures. Ask for application/json."
        raise NotAcceptable(msg) from error


def _reliability(description: BundleDescription) -> Reliability:
    card, population = description.card, description.card.population
    measured_on = f"{population.dataset}, {population.split} ({population.protocol})"
    source = f"{measured_on}, {card.date}; {description.config.name} {card.model_version}"
    structures = [structure.name for structure in description.config.structures]
    return reliability_of(card.measurements[0].cases, structures, source)


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
        labels={label.value: label.name for label in config.every_label},
        label_details=[
            LabelDetail(
                value=label.value,
                name=label.name,
                color=label.color,
                code=_text_of(label.code) if label.code else None,
                modifiers=[_text_of(modifier) for modifier in label.modifiers],
            )
            for label in config.every_label
        ],
        statement=statement_about(description.card),
        accepts=list(description.card.accepted.descriptions),
        reliability=f"/v1/models/{config.name}/reliability",
    )


def _out_of_service(description: BundleDescription) -> Model:
    why = "An administrator has taken it out of service."
    return _describe(description).model_copy(update={"ready": False, "why_not": why})


def _card(card: CalibrationCard) -> Card:
    population = card.population
    return Card(
        date=card.date,
        dataset=population.dataset,
        citation=population.citation,
        licence=population.licence,
        protocol=population.protocol,
        split=population.split,
        n_persons=population.n_persons,
        n_cases=population.n_cases,
        bins=card.bins,
        bin_rule=card.bin_rule,
        conventions=card.conventions,
        measurements=[
            CardMeasurement(
                engine=measurement.engine,
                precision=measurement.precision,
                device=measurement.device,
                platform=measurement.platform,
                scores=_figures(measurement.scores),
                class_scores={name: _figures(scores) for name, scores in measurement.class_scores.items()},
            )
            for measurement in card.measurements
        ],
    )


def _figures(scores: dict[str, Interval]) -> dict[str, Figure]:
    return {name: Figure(**score.model_dump()) for name, score in scores.items()}


def _text_of(code: Code) -> str:
    return f"{code.scheme}:{code.value}"
