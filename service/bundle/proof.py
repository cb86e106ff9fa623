"""Load bundles once in a process of their own, before they count as ready: what their files hold shows only then.

A bundle that takes too much memory, or too long, ends that process alone.
"""

import multiprocessing
import resource
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from service.bundle.description import BundleDescription
from service.errors import BundleError

SECONDS: Final = 120.0
"""Longest time that one bundle may take to load, that of loading the libraries included."""

MEMORY_BYTES: Final = 16 << 30
"""Private memory that the process may take."""

_PROCESSES: Final = multiprocessing.get_context("spawn")


def prove(bundles: Iterable[BundleDescription], seconds: float = SECONDS) -> dict[Path, str]:
    """Return why bundles cannot be loaded, by their root; nothing for those that can.

    Args:
        bundles: described already, so their hashes are right.
        seconds: that each may take.
    """
    why: dict[Path, str] = {}
    prover: _Prover | None = None
    try:
        for bundle in bundles:
            prover = prover or _Prover()
            answer = prover.ask(bundle.root, seconds)
            if answer is None:
                prover.end()
                prover = None
                answer = (
                    f"The process that loaded it died, or took longer than {seconds:.0f} s. Export the bundle again."
                )
            if answer:
                why[bundle.root] = answer
    finally:
        if prover is not None:
            prover.end()
    return why


class _Prover:
    """A process that loads one bundle after another."""

    def __init__(self) -> None:
        self._pipe, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_load_each, args=(theirs,), name="calibrant-proof", daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, root: Path, seconds: float) -> str | None:
        """Return why a bundle cannot be loaded, empty if it can; None if the process died or took too long."""
        try:
            self._pipe.send(root)
            return str(self._pipe.recv()) if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()


def _load_each(pipe: "Connection[Any, Any]") -> None:
    import torch

    from service.bundle.reader import load_bundle

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        try:
            root = pipe.recv()
        except EOFError:
            return
        try:
            load_bundle(root, torch.device("cpu"))
            pipe.send("")
        except BundleError as error:
            pipe.send(error.detail)
