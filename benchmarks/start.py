"""Measures what importing costs a process that computes, with and without what it leaves out: `python benchmarks/start.py`.

The two take turns, each time in a fresh process; figures are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys

from page import PAGE, publish, table

IMPORTS = """
import json, resource, sys, time
if {leaves_out}:
    from service.executors.resident import leave_out
    leave_out()
import service.pipeline.run, monai.networks.nets
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def start(*, leaves_out: bool) -> tuple[float, float]:
    """Return seconds of processor time and MiB of memory of a process that has imported what a case needs."""
    code = IMPORTS.format(leaves_out=leaves_out)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, mib = json.loads(done.stdout)
    return seconds, mib


def main() -> None:
    """Print the table, and write it to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write the table to docs/results/speed.md")
    arguments = parser.parse_args()
    titles = {"everything that MONAI finds": False, "what a case needs": True}
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in titles}
    for _ in range(arguments.rounds):
        for title, leaves_out in titles.items():
            found[title].append(start(leaves_out=leaves_out))
    rows = [
        [
            title,
            *(
                f"{statistics.median(figures):.{digits}f}"
                for figures, digits in zip(zip(*of, strict=True), (2, 0), strict=True)
            ),
        ]
        for title, of in found.items()
    ]
    publish(
        "Service: start of a process that computes",
        table(["imports", "CPU, s", "memory, MiB"], rows),
        PAGE if arguments.write else None,
    )


if __name__ == "__main__":
    main()
