"""Calibrant as a library: the client of the service, the mL1-ACE losses and the calibration metrics.

    from calibrant import Client
    from calibrant.losses import SoftL1ACELoss
    from calibrant.metrics import ace

Importing `calibrant` loads nothing else: httpx comes with `Client`, numpy with `metrics`, torch and monai with `losses`.

The code lives in `service` and `model_training`. Those names are common, and a folder of yours may bear one of them. So
this folder holds links to the files that the library offers (copies in a wheel), every module has a name below
`calibrant`, and all of them import one another relatively: nothing imports `service` or `model_training`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import errors, losses, metrics
    from .client import AsyncClient, Client, Order, Result
    from .errors import CalibrantError, ClientError, InvalidProbabilities, ServerProblem, ServerUnreachable

__all__ = [
    "AsyncClient",
    "CalibrantError",
    "Client",
    "ClientError",
    "InvalidProbabilities",
    "Order",
    "Result",
    "ServerProblem",
    "ServerUnreachable",
    "errors",
    "losses",
    "metrics",
]

_MODULES: Final = ("errors", "losses", "metrics")
_CLIENT: Final = ("AsyncClient", "Client", "Order", "Result")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - classes and modules alike
    """Import an exported name when it is first used (PEP 562)."""
    if name not in __all__:
        msg = f"module 'calibrant' has no attribute {name!r}"
        raise AttributeError(msg)
    if name in _MODULES:
        return import_module(f"calibrant.{name}")
    return getattr(import_module("calibrant.client" if name in _CLIENT else "calibrant.errors"), name)


def __dir__() -> list[str]:
    return __all__


class _LastWord:
    """Python's last finder: says of a module that no other found that the library does not offer it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:  # noqa: ARG004 - of importlib
        """Raise ModuleNotFoundError for a name right below `calibrant`."""
        if name.rpartition(".")[0] == __name__:
            msg = f"{name} is not part of the library; see docs/library.md"
            raise ModuleNotFoundError(msg, name=name)


sys.meta_path.append(_LastWord)
