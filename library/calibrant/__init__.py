"""Calibrant as a library: the client of the service, the mL1-ACE losses and the calibration metrics.

    from calibrant import Client
    from calibrant.losses import SoftL1ACELoss
    from calibrant.metrics import ace

Importing `calibrant` loads nothing else: httpx comes with `Client`, numpy with `metrics`, torch and monai with `losses`.

The code lives in `service` and `model_training`. Those names are common, and a folder of yours may bear one of them. So
this package looks in their folders but gives every module a name below `calibrant`: it never imports `service` or
`model_training`, and the modules that it offers import one another relatively.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from calibrant import metrics
    from model_training import losses
    from service import errors
    from service.client import AsyncClient, Client, Order, Result
    from service.errors import CalibrantError, ClientError, InvalidProbabilities, ServerProblem, ServerUnreachable

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

_ROOT: Final = next(folder for folder in Path(__file__).resolve().parents if (folder / "service" / "client").is_dir())
__path__ = [str(Path(__file__).parent), str(_ROOT / "service"), str(_ROOT / "model_training")]

_MODULES: Final = ("errors", "losses", "metrics")
_CLIENT: Final = ("AsyncClient", "Client", "Order", "Result")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - classes and modules alike
    """Load what is asked for the first time that it is asked for (PEP 562)."""
    if name not in __all__:
        msg = f"module 'calibrant' has no attribute {name!r}"
        raise AttributeError(msg)
    if name in _MODULES:
        return import_module(f"calibrant.{name}")
    return getattr(import_module("calibrant.client" if name in _CLIENT else "calibrant.errors"), name)


def __dir__() -> list[str]:
    return __all__
