"""`calibrant serve` that kills itself (-9) at a named point, with a probability: for `benchmarks/crash.py` only.

`CRASH_POINT` names the point, `CRASH_CHANCE` the probability each time that it is passed. The points lie before and after every
write that a promise rests on. Nothing of this is in the service: its functions are wrapped here.
"""

import functools
import os
import random
import signal
from collections.abc import Callable
from typing import Any

from dbos import DBOS

from service.commands.cli import main
from service.storage.local import StateDirectory, Upload

POINTS: dict[str, tuple[Any, str]] = {
    "body written": (Upload, "flush"),
    "scan kept": (Upload, "keep"),
    "job enqueued": (DBOS, "enqueue_workflow"),
    "attempt begun": (StateDirectory, "begin_attempt"),
    "result published": (StateDirectory, "publish"),
    "attempts cleared": (StateDirectory, "clear_attempts"),
    "job cancelled": (DBOS, "cancel_workflow"),
    "job deleted": (DBOS, "delete_workflow"),
    "job forgotten": (StateDirectory, "forget_job"),
    "scan forgotten": (StateDirectory, "forget_scan"),
}
"""What is wrapped, by the name of the point; each is a point before and one after it."""

NAMES = [f"{when} {name}" for name in POINTS for when in ("before", "after")]


def arm(point: str, chance: float) -> None:
    """Let the process kill itself at a point."""
    when, _, name = point.partition(" ")
    owner, attribute = POINTS[name]
    function: Callable[..., Any] = getattr(owner, attribute)

    def die() -> None:
        if random.random() < chance:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the function takes
        if when == "before":
            die()
        answer = function(*arguments, **options)
        if when == "after":
            die()
        return answer

    # A class method that was looked up is bound already.
    setattr(owner, attribute, staticmethod(wrapped) if isinstance(owner.__dict__[attribute], classmethod) else wrapped)


if __name__ == "__main__":
    arm(os.environ["CRASH_POINT"], float(os.environ["CRASH_CHANCE"]))
    main()
