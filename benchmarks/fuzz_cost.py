"""Searches for small files that cost much: `python benchmarks/fuzz_cost.py`.

Hypothesis draws files of under 100 kB of every format and voxel size and is told the memory and the processor time that each
takes, from the check to the answer of the shipped model, so that it looks for more (`hypothesis.target`). What was found,
and the files' parameters, go to docs/results/fuzz.json; counts of several runs add up.
"""

import argparse
import gzip
import json
import math
import resource
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import nibabel as nib
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis import strategies as st

from service.bundle.registry import SHIPPED
from service.engines.ready import ready_bundle
from service.errors import CalibrantError
from service.intake.decode import check_scan
from service.pipeline.run import run_case

RESULTS: Final = Path(__file__).parents[1] / "docs" / "results" / "fuzz.json"

MOST_UPLOADED: Final = 100_000
"""Bytes of a file: larger ones are not drawn."""

MOST_MIB: Final = 1024
MOST_CPU_S: Final = 5.0
"""What such a file may cost at most."""

_MOST_VOXELS: Final = 1 << 25
"""Of a file that is drawn: more do not fit into 100 kB, or are refused by their header alone."""

_KINDS: Final = ("nifti-gz", "nrrd", "mha", "mgz")
_DTYPES: Final = ("uint8", "int16", "float32", "float64")


class Drawn(NamedTuple):
    """A file that is tried.

    Args:
        kind: its format.
        logs: (3,) base-2 logarithms of its edges in voxels.
        mm_logs: (3,) base-10 logarithms of its voxel size.
        dtype: of its voxels.
        degrees: by which it is turned about an oblique axis.
        period: after which its voxels repeat; they are noise for 0.
    """

    kind: str
    logs: tuple[float, float, float]
    mm_logs: tuple[float, float, float]
    dtype: str
    degrees: float
    period: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(max(2, round(2**log)) for log in self.logs)


class Cost(NamedTuple):
    """What a file took: MiB above what the process had, seconds of all its processors, and how it ended."""

    mib: float
    cpu_s: float
    end: str


def content_of(drawn: Drawn) -> bytes:
    """Return the file."""
    shape = drawn.shape
    n = math.prod(shape)
    dtype = np.dtype(drawn.dtype)
    rng = np.random.default_rng(0)
    block = np.arange(drawn.period) % 251 if drawn.period else rng.integers(0, 251, min(n, 200_000))
    array = np.resize(block.astype(dtype), n).reshape(shape)
    affine = np.eye(4)
    turned = nib.eulerangles.euler2mat(*(math.radians(drawn.degrees * share) for share in (1, 0.7, 0.4)))
    affine[:3, :3] = turned * 10 ** np.array(drawn.mm_logs)
    if drawn.kind == "nifti-gz":
        return gzip.compress(nib.Nifti1Image(array, affine).to_bytes(), 6)
    if drawn.kind == "mgz":
        known = array if drawn.dtype != "float64" else array.astype(np.float32)
        return gzip.compress(nib.freesurfer.mghformat.MGHImage(known, affine).to_bytes(), 6)
    voxels, lps = array.tobytes(order="F"), np.diag([-1.0, -1, 1]) @ affine[:3, :3]
    if drawn.kind == "nrrd":
        kinds = {"uint8": "uchar", "int16": "short", "float32": "float", "float64": "double"}
        axes = " ".join(f"({','.join(f'{mm:.9g}' for mm in axis)})" for axis in lps.T)
        return (
            f"NRRD0004\ntype: {kinds[drawn.dtype]}\ndimension: 3\nspace: left-posterior-superior\n"
            f"sizes: {' '.join(map(str, shape))}\nspace directions: {axes}\nendian: little\nencoding: gzip\n"
            "space origin: (0,0,0)\n\n"
        ).encode() + gzip.compress(voxels, 6)
    kinds = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "float32": "MET_FLOAT", "float64": "MET_DOUBLE"}
    spacing = np.linalg.norm(lps, axis=0)
    matrix = " ".join(f"{cosine:.9g}" for cosine in (lps / spacing).T.ravel())
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        f"TransformMatrix = {matrix}\nOffset = 0 0 0\nElementSpacing = {' '.join(f'{mm:.9g}' for mm in spacing)}\n"
        f"DimSize = {' '.join(map(str, shape))}\nElementType = {kinds[drawn.dtype]}\nElementDataFile = LOCAL\n"
    ).encode() + zlib.compress(voxels, 6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])


class Meter:
    """Measures files one after another, in this process."""

    def __init__(self) -> None:
        torch.set_num_threads(2)
        self._bundle = ready_bundle(SHIPPED / "hippocampus-mr", torch.device("cpu"), "torch-fp32")
        self.measure(
            content_of(Drawn("nifti-gz", (6, 6, 6), (0.6, 0.6, 0.6), "int16", 0, 0))
        )  # loads what is loaded once

    def measure(self, content: bytes) -> Cost:
        """Return what a file costs from the check, which runs here without the sandbox, to its answer."""
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / "scan", Path(folder) / "out"
            path.write_bytes(content)
            out.mkdir()
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
            before, started = _memory_kib("VmRSS"), _cpu_s()
            try:
                check_scan(path)
                run_case(path, self._bundle, out, lambda _stage, _done: None)
                end = "answered"
            except CalibrantError as error:
                end = error.code
            return Cost((_memory_kib("VmHWM") - before) / 1024, _cpu_s() - started, end)


def drawn_files() -> st.SearchStrategy[Drawn]:
    """Return the strategy of files: edges and voxel sizes over all magnitudes, each axis by itself."""
    edge = st.floats(1, 21)
    mm = st.floats(-5, 3.5)
    return st.builds(
        Drawn,
        st.sampled_from(_KINDS),
        st.tuples(edge, edge, edge).filter(lambda logs: sum(logs) <= math.log2(_MOST_VOXELS)),
        st.one_of(st.tuples(mm, mm, mm), mm.map(lambda log: (log, log, log))),
        st.sampled_from(_DTYPES),
        st.sampled_from((0.0, 0.0, 10.0, 35.0)),
        st.sampled_from((0, 2, 7, 250)),
    )


def search(files: int, start: int) -> dict[str, Any]:
    """Return the worst that was found among so many files.

    Args:
        files: that are measured.
        start: seed, so that runs differ.
    """
    meter, worst, tried = Meter(), {"MiB": (0.0, ""), "CPU s": (0.0, "")}, 0
    ends: dict[str, int] = {}

    @seed(start)
    @settings(
        max_examples=files,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.target],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn_files())
    def measured(drawn: Drawn) -> None:
        nonlocal tried
        content = content_of(drawn)
        if len(content) > MOST_UPLOADED:
            return
        cost = meter.measure(content)
        tried += 1
        ends[cost.end] = ends.get(cost.end, 0) + 1
        about = f"{drawn.kind} {len(content)} bytes, {drawn.shape}, {[round(10**log, 5) for log in drawn.mm_logs]} mm, {drawn.dtype}, {drawn.degrees} degrees: {cost.end}"
        worst["MiB"] = max(worst["MiB"], (round(cost.mib, 1), about))
        worst["CPU s"] = max(worst["CPU s"], (round(cost.cpu_s, 2), about))
        target(cost.mib, label="MiB")
        target(cost.cpu_s, label="CPU seconds")

    measured()
    return {
        "files": tried,
        "worst": {name: list(found) for name, found in worst.items()},
        "ends": dict(sorted(ends.items())),
    }


def added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what several runs have found."""
    if not earlier:
        return found
    worst = {name: max(earlier["worst"][name], found["worst"][name]) for name in found["worst"]}
    ends = {
        end: earlier["ends"].get(end, 0) + found["ends"].get(end, 0) for end in {**earlier["ends"], **found["ends"]}
    }
    return {"files": earlier["files"] + found["files"], "worst": worst, "ends": dict(sorted(ends.items()))}


def main() -> int:
    """Search, print and write what was found; return 1 if a file cost more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="?", type=int, default=300)
    parser.add_argument("--seed", type=int, help="by default the number of files that were tried before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    earlier = results.get("cost", {})
    started = time.monotonic()
    found = search(options.files, earlier.get("files", 0) if options.seed is None else options.seed)
    results["cost"] = added(earlier, found)
    options.results.write_text(json.dumps(results, indent=2) + "\n")
    print(f"{found['files']} files under {MOST_UPLOADED} bytes in {time.monotonic() - started:.0f} s: {found['ends']}")
    for name, (value, about) in results["cost"]["worst"].items():
        print(f"worst {name}: {value} ({about})")
    worst = results["cost"]["worst"]
    return int(worst["MiB"][0] > MOST_MIB or worst["CPU s"][0] > MOST_CPU_S)


if __name__ == "__main__":
    sys.exit(main())
