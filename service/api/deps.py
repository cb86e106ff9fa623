"""What the routes are given: the parts that `create_app` wired together."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.bundle.registry import Registry
from service.jobs.segment import JobQueue
from service.settings import Settings
from service.storage.local import StateDirectory


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one running service."""

    settings: Settings
    state: StateDirectory
    registry: Registry
    jobs: JobQueue


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(_parts)]
"""The parts, as a route's argument."""
