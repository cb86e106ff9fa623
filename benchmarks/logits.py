"""Measures what storing the bytes of logits apart saves in space and time: `python benchmarks/logits.py`.

Uses the results of `benchmarks/pipeline.py`. Both layouts are compressed with the same library at the same level.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from page import PAGE, publish, table
from pipeline import PLANS, out_of

from service.bundle.engine_kind import ENGINE_KINDS
from service.result.logits import GZIP_LEVEL, GZIP_WINDOW, encode_logits, read_logits

REPEATS = 5


def numbers_in_turn(logits: npt.NDArray[np.float16]) -> Iterator[bytes]:
    """Yield the compressed numbers in their order in memory."""
    compressor = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, GZIP_WINDOW)
    for channel in logits:
        yield compressor.compress(channel.view(np.uint8))
    yield compressor.flush()


Layout = Callable[[npt.NDArray[np.float16]], Iterator[bytes]]
LAYOUTS: dict[str, Layout] = {"numbers in turn": numbers_in_turn, "bytes apart": encode_logits}


def measured(logits: npt.NDArray[np.float16]) -> dict[str, tuple[int, float]]:
    """Return size in bytes and shortest time in seconds by layout; the layouts take turns."""
    results = dict.fromkeys(LAYOUTS, (0, float("inf")))
    for _ in range(REPEATS):
        for name, pack in LAYOUTS.items():
            started = time.perf_counter()
            size = sum(len(piece) for piece in pack(logits))
            results[name] = size, min(results[name][1], time.perf_counter() - started)
    return results


def main() -> None:
    """Print the table, and write it to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table to docs/results/speed.md")
    rows = []
    engine = next(iter(ENGINE_KINDS.values())).name
    for key, plan in PLANS.items():
        logits = read_logits(out_of(key, engine))
        results = measured(logits)
        cells = [f"{size / logits.nbytes:.2f}, {seconds * 1e3:.1f} ms" for size, seconds in results.values()]
        rows.append([plan.title, f"{logits.nbytes / 1e6:.1f}", *cells])
    head = ["logits", "float16, MB", *(f"{name}: packed, of it" for name in LAYOUTS)]
    publish("Logits: size and time", table(head, rows), PAGE if parser.parse_args().write else None)


if __name__ == "__main__":
    main()
