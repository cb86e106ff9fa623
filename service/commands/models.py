"""`calibrant models`: lists the models of this machine or a running service with their calibration figures."""

from dataclasses import dataclass

from rich.table import Column, Table

from service.bundle.statement import statement_about
from service.client.http import Client
from service.commands.predict import registry
from service.schemas import Statement


@dataclass(frozen=True, slots=True)
class Installed:
    """A row of the table.

    Args:
        name: name of the bundle.
        version: version that the bundle declares.
        identity: name@sha256.
        why_not: why the bundle cannot be served; empty if it can.
        statement: statement of its card.
    """

    name: str
    version: str
    identity: str
    why_not: str
    statement: Statement | None


def models_here() -> list[Installed]:
    """Return the bundles of this machine.

    Raises:
        SettingsError: CALIBRANT_BUNDLE_DIR is no folder.
    """
    bundles = registry()
    ready = [
        Installed(
            name,
            description.config.version,
            description.identity,
            "",
            statement_about(description.card),
        )
        for name, description in bundles.ready.items()
    ]
    return ready + [Installed(name, "", "", why, None) for name, why in bundles.broken.items()]


def models_there(url: str) -> list[Installed]:
    """Return the bundles of a running service.

    Raises:
        ClientError: no server answered, or it refused.
    """
    with Client(url) as client:
        models = client.models().models
    return [
        Installed(model.name, model.version or "", model.identity or "", model.why_not or "", model.statement)
        for model in models
    ]


def table_of(models: list[Installed]) -> Table:
    """Return the table of models; DSC and ACE, with 95 % intervals, are the card's figures about its population."""
    table = Table(
        *(Column(name, overflow="fold") for name in ("model", "version", "ready", "DSC", "ACE", "measured on"))
    )
    for model in models:
        statement, measured_on = model.statement, ""
        if statement:
            measured_on = f"{statement.n_cases} cases of {statement.n_persons} persons, {statement.dataset}"
        table.add_row(
            *(model.identity or model.name, model.version, model.why_not or "yes"),
            *(_text_of(statement, "dsc"), _text_of(statement, "ace_macro"), measured_on),
        )
    return table


def _text_of(statement: Statement | None, name: str) -> str:
    figure = statement.figures.get(name) if statement and statement.figures else None
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return "-"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
