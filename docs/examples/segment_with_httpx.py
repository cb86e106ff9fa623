"""Segment every scan of a folder through a Calibrant service: python segment_with_httpx.py SCANS OUT [URL].

Needs httpx only. CALIBRANT_KEY holds the key where the service wants one.
"""
# ruff: noqa: INP001, T201 - a script, and it prints

import os
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".zip")
RESULTS = {"mask": "mask.nii.gz", "confidence": "confidence.nii.gz", "summary": "summary.json"}
BUSY = (429, 502, 503, 504)


def ask(service: httpx.Client, method: str, path: str, **parts: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
    """Return the answer; ask again while the service is busy or restarts: thanks to its key a POST makes one job."""
    for pause_s in (1, 2, 4, 8, 16):
        with suppress(httpx.TransportError):
            answer = service.request(method, path, **parts)
            if answer.status_code not in BUSY:
                return answer
        time.sleep(pause_s)
    return service.request(method, path, **parts)


def main(scans: str, out: str, url: str = "http://127.0.0.1:8000") -> int:
    """Send all scans, then wait for each and write its results to OUT/NAME; return 1 if one could not be segmented."""
    key = os.environ.get("CALIBRANT_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    jobs, failed = {}, 0
    with httpx.Client(base_url=url, headers=headers, timeout=60) as service:
        for scan in sorted(path for path in Path(scans).iterdir() if path.name.endswith(ENDINGS)):
            once = {"Idempotency-Key": uuid.uuid4().hex}
            jobs[scan.name] = ask(service, "POST", "/v1/segmentations", content=scan.read_bytes(), headers=once).json()
        for name, job in jobs.items():
            while job.get("state") in ("queued", "running"):
                time.sleep(0.5)
                job = ask(service, "GET", job["links"]["self"]).json()  # noqa: PLW2901 - the same job, later
            if job.get("state") != "succeeded":
                problem = job.get("problem") or job  # RFC 9457: why it failed, or why it was refused at once
                print(f"{name}: {problem['title']}: {problem['detail']}")
                failed = 1
                continue
            Path(out, name).mkdir(parents=True, exist_ok=True)
            for result, file in RESULTS.items():
                content = ask(service, "GET", job["links"][result]).raise_for_status().content
                Path(out, name, file).write_bytes(content)
            print(f"{name}: {job['state']} after {sum(job['seconds'].values()):.2f} s by {job['model']}")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
