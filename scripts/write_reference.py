"""Write docs/reference.md, every route, command and error code on one page: `python scripts/write_reference.py`."""

import json
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from service.commands.cli import app
from service.errors import BY_CODE

DOCS = Path(__file__).parents[1] / "docs"
TARGET = DOCS / "reference.md"

_PAGE = """\
# Reference

Every route, command and error code, as the code states them (`python scripts/write_reference.py` writes this page).
Settings are in [settings.md](settings.md), parameters and bodies of each route in [openapi.json](openapi.json).

## Routes

| route | what it does |
|---|---|
{routes}

Below `/monailabel/` the service also answers the calls of MONAI Label's clients ([viewers.md](viewers.md)).

## Commands

Each takes `--help`.

| command | what it does |
|---|---|
{commands}

## Error codes

The `type` of a problem document is `/problems/` and the code. A failing command prints title and detail.

| code | status | title |
|---|---|---|
{errors}
"""


def routes() -> dict[str, str]:
    """Return what each route does, by method and path, from the committed OpenAPI document."""
    paths = json.loads((DOCS / "openapi.json").read_text())["paths"]
    return {
        f"{method.upper()} {path}": operation["description"].partition("\n\n")[0]
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


def commands() -> dict[str, str]:
    """Return what each command does, by its words, hidden ones left out."""
    return dict(_walk(typer.main.get_command(app), "calibrant"))


def _walk(command: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(command, TyperGroup):
        for word, part in command.commands.items():
            yield from _walk(part, f"{name} {word}")
    elif isinstance(command, TyperCommand) and not command.hidden:
        yield name, (command.help or "").partition("\n\n")[0].replace("\n", " ")


def errors() -> dict[str, tuple[int, str]]:
    """Return status and title of each error code of the service, in the order of `service.errors`."""
    return {code: (error.status, error.title) for code, error in BY_CODE.items()}


def page() -> str:
    """Return the page."""
    return _PAGE.format(
        routes="\n".join(f"| `{route}` | {what} |" for route, what in routes().items()),
        commands="\n".join(f"| `{command}` | {what} |" for command, what in sorted(commands().items())),
        errors="\n".join(f"| `{code}` | {status} | {title} |" for code, (status, title) in errors().items()),
    )


if __name__ == "__main__":
    TARGET.write_text(page())
