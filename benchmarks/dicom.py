"""Time and size of the default DICOM objects of a large series: 512 x 512 x 200 voxels, five structures.

    python benchmarks/dicom.py

The structures are ellipsoids of 97 slices each, together 8 % of the voxels. The script prints the size of each object and the
seconds until its file is written: wall time, and processor time, which does not depend on the load of the machine.
"""

import datetime as dt
import gzip
import hashlib
import json
import tempfile
import time
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from service.bundle.schema import Label
from service.derived.dicom import read_outcome
from service.result.dicom.objects import write_objects
from service.result.files import CONFIDENCE, FRAME, MASK, SOURCE, SUMMARY
from service.result.frame import Frame
from service.schemas import DEFAULT_OBJECTS, CaseResult, Statement, Structure, Summary

SHAPE = (512, 512, 200)
"""Columns, rows, slices."""

STRUCTURES = 5
RADII = (38, 110, 48)
"""Voxels along columns, rows and slices."""

LIMIT_S, LIMIT_MB = 5.0, 20.0


def main() -> None:
    """Make the objects once and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder)
        _write_result(result)
        rows: list[tuple[str, float, float]] = []
        with _Timed("read", rows):
            outcome = read_outcome(result)
        for dicom_object in DEFAULT_OBJECTS:
            with _Timed(dicom_object, rows):
                write_objects(outcome, result, [dicom_object])
        sizes = [(result / f"{dicom_object}.dcm").stat().st_size / 1e6 for dicom_object in DEFAULT_OBJECTS]
    print(f"{'object':8} {'MB':>6} {'clock s':>8} {'CPU s':>6}")
    for (name, clock_s, cpu_s), megabytes in zip(rows, [0.0, *sizes], strict=True):
        print(f"{name:8} {megabytes:6.1f} {clock_s:8.2f} {cpu_s:6.2f}")
    clock_s, cpu_s = sum(row[1] for row in rows), sum(row[2] for row in rows)
    print(f"{'together':8} {sum(sizes):6.1f} {clock_s:8.2f} {cpu_s:6.2f}")
    met = sum(sizes) <= LIMIT_MB and clock_s <= LIMIT_S
    print(
        f"foreground {(outcome.mask_KRC > 0).mean():.1%}; at most {LIMIT_MB:.0f} MB and {LIMIT_S:.0f} s: {'met' if met else 'missed'}"
    )


class _Timed:
    """Adds a row with a name, and wall and processor seconds of its block."""

    def __init__(self, name: str, rows: list[tuple[str, float, float]]) -> None:
        self._name, self._rows = name, rows

    def __enter__(self) -> None:
        self._started = time.monotonic(), time.process_time()

    def __exit__(self, *_error: object) -> None:
        clock, cpu = self._started
        self._rows.append((self._name, time.monotonic() - clock, time.process_time() - cpu))


def _write_result(folder: Path) -> None:
    """Write the files that a job on such a series would keep."""
    random = np.random.default_rng(7)
    mask = np.zeros(SHAPE, np.uint8)
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for n in range(STRUCTURES):
        centre = (95 + 80 * n, 256, 50 + 25 * n)
        distance = sum(((index - c) / r) ** 2 for index, c, r in zip((i, j, k), centre, RADII, strict=True))
        mask[(distance <= 1) & (mask == 0)] = n + 1
    confidence = random.integers(100, 256, SHAPE).astype(np.uint8)
    for name, array in ((MASK, mask), (CONFIDENCE, confidence)):
        _save(folder / name, array)
    (folder / SOURCE).write_bytes(gzip.compress(json.dumps(_source()).encode()))
    (folder / SUMMARY).write_text(_summary(mask).model_dump_json())
    (folder / FRAME).write_text(_frame().model_dump_json())
    names = (MASK, CONFIDENCE, SUMMARY)
    case = CaseResult(
        model="benchmark@" + "b" * 64,
        device="cpu",
        engine="torch",
        precision="fp32",
        seconds={},
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        weights_sha256="w" * 64,
        card_sha256="c" * 64,
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )
    (folder / "result.json").write_text(case.model_dump_json())


def _save(path: Path, array: np.ndarray) -> None:
    content = nib.Nifti1Image(array, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(content, 1))


def _source() -> dict[str, object]:
    def uid(name: str) -> str:
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"

    columns, rows, slices = SHAPE
    return {
        "head": {
            "00080060": {"vr": "CS", "Value": ["CT"]},
            "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
            "00080018": {"vr": "UI", "Value": [uid("0")]},
            "0020000D": {"vr": "UI", "Value": [uid("study")]},
            "0020000E": {"vr": "UI", "Value": [uid("series")]},
        },
        "frame_of_reference": uid("place"),
        "rows": rows,
        "columns": columns,
        "pixel_spacing_mm": [0.75, 0.75],
        "slice_thickness_mm": 1.5,
        "slice_distance_mm": 1.5,
        "orientation": [1, 0, 0, 0, 1, 0],
        "slices": [
            {
                "instance": uid(str(k)),
                "sop_class": "1.2.840.10008.5.1.4.1.1.2",
                "frame": None,
                "position_mm": [-190, -190, 1.5 * k],
            }
            for k in range(slices)
        ],
    }


def _summary(mask: np.ndarray) -> Summary:
    return Summary(
        model="benchmark@" + "b" * 64,
        structures=[
            Structure(
                label=n,
                name=f"structure {n}",
                voxels=int((mask == n).sum()),
                volume_ml=float((mask == n).sum()) * 0.00084,
                mean_confidence=0.8,
                p5_confidence=0.5,
            )
            for n in range(1, STRUCTURES + 1)
        ],
        foreground_confidence=0.8,
        statement=Statement(
            status="holds",
            text="On 33 cases of 22 persons this model reached what the card says. " * 4,
            reasons=[],
            dataset="none",
            split="none",
            protocol="held-out",
            n_persons=22,
            n_cases=33,
            date=dt.date(2026, 1, 1),
            engine="torch",
            precision="fp32",
            figures=None,
        ),
        warnings=[],
    )


def _frame() -> Frame:
    shipped = describe_bundle(SHIPPED / "hippocampus-mr").config
    labels = [Label(value=n, name=f"structure {n}", color=(40 * n, 255 - 40 * n, 128)) for n in range(STRUCTURES + 1)]
    config = shipped.model_copy(update={"labels": labels, "temperature": [1.0] * len(labels), "locator": None})
    return Frame(
        scan_shape=SHAPE,
        orientation=[(0, 1), (1, 1), (2, 1)],
        oriented_shape=SHAPE,
        network_shape=SHAPE,
        step=(1, 1, 1),
        affine=np.eye(4).tolist(),
        header="",
        config=config,
    )


if __name__ == "__main__":
    main()
