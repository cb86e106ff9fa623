"""Measures what a second process on the CPU brings a service: `python benchmarks/devices.py`.

Services with one process, with two, and with one of two threads take turns on the same scan; figures are medians of rounds. Run
it after `benchmarks/pipeline.py`, whose bundles and measurements it uses.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from page import PAGE, publish, table
from pipeline import PLANS
from serving import WAIT_S, Service, running

from service.bundle.description import describe_bundle

CLIENTS = 3
"""One more than processes, so that a case is always at hand."""

WARM_UP = 8


@dataclass(frozen=True)
class Arrangement:
    """How a service uses the CPU."""

    title: str
    device: str
    threads: int


ARRANGEMENTS = (
    Arrangement("one process, one thread", "cpu", 1),
    Arrangement("two processes, one thread each", "cpu*2", 1),
    Arrangement("one process, two threads", "cpu", 2),
)


def cases_per_second(service: Service, scan: Path, model: str, jobs: int) -> float:
    """Return the rate at which jobs of a scan, which was sent before, end for clients that wait for them."""
    sent = service.client.post(
        "/v1/scans", content=scan.read_bytes(), headers={"Content-Type": "application/octet-stream"}
    )
    chosen = {"scan": sent.raise_for_status().json()["id"], "model": model}

    def segment(_: int) -> None:
        job = service.client.post("/v1/segmentations", params=chosen, headers={"Prefer": f"wait={WAIT_S}"})
        if job.raise_for_status().json()["state"] != "succeeded":
            raise SystemExit(job.text)

    with ThreadPoolExecutor(CLIENTS) as clients:
        started = time.perf_counter()
        list(clients.map(segment, range(jobs)))
        return jobs / (time.perf_counter() - started)


def main() -> None:
    """Print the table, and write it to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", "../shared/data")))
    parser.add_argument("--subject", choices=PLANS, default="cardiac")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=24, help="cases of each service in a round")
    parser.add_argument("--write", action="store_true", help="write the table to docs/results/speed.md")
    arguments = parser.parse_args()
    subject = PLANS[arguments.subject].subject(arguments.data)
    model = describe_bundle(subject.bundle).config.name
    rates: dict[Arrangement, list[float]] = {arrangement: [] for arrangement in ARRANGEMENTS}
    for _ in range(arguments.rounds):
        for arrangement in ARRANGEMENTS:
            # One at a time: an idle service, too, looks at its queue twenty times a second.
            with running(arrangement.device, arrangement.threads) as service:
                cases_per_second(service, subject.scan, model, WARM_UP)
                rates[arrangement].append(cases_per_second(service, subject.scan, model, arguments.jobs))
    first = rates[ARRANGEMENTS[0]]
    rows = [
        [
            arrangement.title,
            f"{statistics.median(found):.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{statistics.median(found) / statistics.median(first):.2f}",
            f"{statistics.median(one / other for one, other in zip(found, first, strict=True)):.2f}",
        ]
        for arrangement, found in rates.items()
    ]
    head = [
        PLANS[arguments.subject].title,
        "cases/s, median",
        "range",
        "of the first",
        "of the first, median of rounds",
    ]
    publish("Service: processes on the CPU", table(head, rows), PAGE if arguments.write else None)


if __name__ == "__main__":
    main()
