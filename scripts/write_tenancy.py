"""Write docs/tenancy.md: what every operation of the OpenAPI document answers to callers who may not use it.

It starts `calibrant serve` with keys, has one owner segment a drawn scan, and asks for everything as somebody else.
"""

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

from service.storage.keys import add_key

TARGET = Path(__file__).parents[1] / "docs" / "tenancy.md"

HEAD = """\
# Who may do what

`scripts/write_tenancy.py` writes this page; a test asks a running service again and compares. Every operation is asked for by
callers who may not use it, for a job of another owner that exists and has succeeded. What belongs to another owner answers as
what does not exist, to the byte, so that nobody can find out.

- **no key**, **wrong key**: without the header, and with a key that the service does not know
- **other owner**: with a valid key, for what belongs to somebody else; `own` where the operation shows the caller's own only
- **missing scope**: with a key of the owner that is for the other scope, or that is no administrator's
- **unknown id**: with the owner's key, for an id that was never given

The DICOM routes are asked with the id of a segmentation, which no DICOM job has; their owners are tested in
`tests/service/api/test_pacs.py`. `/v1/hooks/orthanc` takes the webhook's secret instead of a key; none is configured here.

| operation | no key | wrong key | other owner | missing scope | unknown id |
|---|---|---|---|---|---|
"""

UNKNOWN = "0" * 32
ADMINISTRATION = {"loadModel", "unloadModel", "testPacs"}
BODIES = {"createDicomJob": {"pacs": "nowhere", "series": "1.2"}}
"""JSON bodies of operations that look at them before anything else."""


def scan() -> bytes:
    """Return a scan of two boxes in noise, NIfTI (.nii.gz), 36 x 48 x 32 voxels of 1 mm."""
    array = np.random.default_rng(0).normal(100, 10, (36, 48, 32)).astype(np.float32)
    array[12:20, 10:24, 10:20] += 60
    array[14:22, 24:38, 10:20] += 40
    return gzip.compress(nib.Nifti1Image(array, np.eye(4)).to_bytes())


def table(url: str, keys: Path) -> str:
    """Return the page's text, as the service at an address answers; keys are added to its file."""
    both = add_key(keys, "tenancy-lab", admin=False)
    reads = add_key(keys, "tenancy-lab", admin=False, scopes=frozenset({"read"}))
    submits = add_key(keys, "tenancy-lab", admin=False, scopes=frozenset({"submit"}))
    other = add_key(keys, "tenancy-other", admin=False)
    with httpx.Client(base_url=url, timeout=60) as http:
        made = http.post("/v1/segmentations", content=scan(), headers=_bearer(both) | {"Prefer": "wait=60"}).json()
        document = http.get("/openapi.json", headers=_bearer(both)).json()
        rows = []
        for path, operations in sorted(document["paths"].items()):
            for method, operation in operations.items():
                if "security" in operation:  # health needs no key
                    continue
                known = path.format(job_id=made["id"], scan_id=made["scan"], name="hippocampus-mr")
                unknown = path.format(job_id=UNKNOWN, scan_id=2 * UNKNOWN, name="unknown")
                mine = reads if method != "get" and not path.endswith("/reference") else submits
                mine = both if operation["operationId"] in ADMINISTRATION else mine

                def answer(
                    key: str | None, url: str = known, how: tuple[str, str] = (method, operation["operationId"])
                ) -> str:
                    return _status(http, how[0], url, key, BODIES.get(how[1]))

                others = answer(other) if "{job_id}" in path or "{scan_id}" in path else "own"
                if path.startswith(("/v1/models", "/v1/dicom/pacs", "/v1/hooks", "/metrics")):
                    others = "-"
                cells = [answer(None), answer("cal_000000000000_wrong"), others]
                cells += [answer(mine), answer(both, unknown) if "{" in path else "-"]
                rows.append(f"| {method.upper()} {path} | {' | '.join(cells)} |")
        http.delete(made["links"]["self"], headers=_bearer(both))
    return HEAD + "\n".join(rows) + "\n"


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _status(http: httpx.Client, method: str, url: str, key: str | None, body: dict[str, Any] | None) -> str:
    content = b"" if body is None else None
    return str(http.request(method, url, headers=_bearer(key), json=body, content=content).status_code)


def main() -> None:
    """Start a service, ask it, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        add_key(keys, "nobody", admin=False)
        environment = os.environ | {"CALIBRANT_STATE_DIR": f"{folder}/state", "CALIBRANT_KEYS_FILE": str(keys)}
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603 - our own
            try:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                url = next(line for line in process.stdout if " listens at " in line).split()[4]
                TARGET.write_text(table(url, keys))
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
