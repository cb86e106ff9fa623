"""`calibrant models`: what is installed, here or at a running service, and what is known about how far to trust it."""

from dataclasses import dataclass

from rich.table import Column, Table

from service.bundle.statement import statement_of
from service.client.http import Client
from service.commands.predict import registry
from service.schemas import Statement


@dataclass(frozen=True, slots=True)
class Installed:
    """A row of the table.

    Args:
        name: of the bundle.
        version: that it declares.
        identity: name@sha256.
        why_not: it cannot be served; empty if it can.
        statement: of its card.
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
    found = registry()
    ready = [
        Installed(
            name, each.config.version, each.identity, "", statement_of(each.card, each.card.measurements[0], reasons=[])
        )
        for name, each in found.ready.items()
    ]
    return ready + [Installed(name, "", "", why, None) for name, why in found.broken.items()]


def models_there(url: str) -> list[Installed]:
    """Return the bundles of a running service.

    Raises:
        ClientError: no answer, or a refusal.
    """
    with Client(url) as client:
        found = client.models()
    return [
        Installed(each.name, each.version or "", each.identity or "", each.why_not or "", each.statement)
        for each in found.models
    ]


def table_of(models: list[Installed]) -> Table:
    """Return the table: DSC and ACE are the card's, with their 95 % intervals, about a population and no image."""
    table = Table(
        *(Column(name, overflow="fold") for name in ("model", "version", "ready", "DSC", "ACE", "measured on"))
    )
    for each in models:
        where = ""
        if each.statement:
            where = f"{each.statement.n_cases} cases of {each.statement.n_persons} persons, {each.statement.dataset}"
        table.add_row(
            *(each.identity or each.name, each.version, each.why_not or "yes"),
            *(_spelt(each.statement, "dsc"), _spelt(each.statement, "ace_macro"), where),
        )
    return table


def _spelt(statement: Statement | None, figure: str) -> str:
    found = statement.figures.get(figure) if statement and statement.figures else None
    if found is None or found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"
