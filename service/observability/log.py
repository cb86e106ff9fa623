"""Logs: one JSON object per line with fields from a fixed list, none of which can hold what a user sent.

Records of third-party libraries may contain anything, so only their logger, level and line of code are logged; of Python's
warnings and of errors that end a thread, no more than that.
"""

import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

FIELDS: Final = frozenset(
    {
        "event", "level", "logger", "timestamp", "line",
        "device", "engine", "error", "job", "method", "milliseconds", "model", "owner", "problem", "route", "seconds", "stage",
        "state", "status", "removed", "where",
    }
)  # fmt: skip
"""All fields that a line may have."""

_OURS: Final = ("service", "model_training")


def configure_logging(least: int = logging.INFO) -> None:
    """Send the log records of this process to stderr as JSON.

    Args:
        least: least level of our own records; those of libraries are warnings or worse.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[_only_where_of_others, _only_known_fields, structlog.processors.JSONRenderer(sort_keys=True)],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    threading.excepthook = _log_end
    logging.getLogger("service").setLevel(least)


def _log_end(end: "threading.ExceptHookArgs") -> None:
    """Log that a thread ended by an error; Python would print its message, which may hold what was sent."""
    structlog.get_logger(__name__).error("a thread failed", error=end.exc_type.__name__)


def _only_where_of_others(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record: logging.LogRecord = event["_record"]
    if event["_from_structlog"] or record.name.split(".")[0] in _OURS:
        return event
    return {
        "event": "a library logged",
        "level": record.levelname.lower(),
        "logger": record.name,
        "line": f"{record.module}:{record.lineno}",
        "timestamp": event.get("timestamp"),
    }


def _only_known_fields(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value for name, value in event.items() if name in FIELDS}
