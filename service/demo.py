"""`calibrant demo`: both hippocampi of the MNI152 template, sent over HTTP to a server started for it, and drawn.

The template is an average of 152 brains, not a person: it shows that the path works, it measures nothing. It comes
with nilearn's wheel (International Consortium for Brain Mapping; nothing is downloaded).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.client.http import Client
from service.errors import ServerUnreachable, SettingsError
from service.predict import Prediction
from service.schemas import RESEARCH_USE_ONLY, Job

TEMPLATE: Final = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""Path of the template inside nilearn: T1-weighted, 1 mm, MNI space."""

CENTRES_MM: Final = {"left": (-27.0, -22.0, -14.0), "right": (27.0, -22.0, -14.0)}
"""About the middle of each hippocampus in MNI space (RAS)."""

CROP_VOXELS: Final = (36, 52, 40)
"""Size of the crop around it."""

START_S: Final = 60.0
"""Seconds within which the server must be ready."""


@dataclass(frozen=True, slots=True)
class Side:
    """One segmented crop of the demo."""

    name: str
    scan: Path
    files: Prediction


def run_demo(out: Path) -> None:
    """Crop the template, serve, send both crops, write results and `demo.png` into the folder `out`.

    Raises:
        SettingsError: nilearn or matplotlib is not installed.
        ServerUnreachable: the server did not start.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    scans = {name: crop_template(centre, out / f"mni152_{name}.nii.gz") for name, centre in CENTRES_MM.items()}
    _say("The MNI152 T1 template (an average of 152 brains), cropped around each hippocampus.")
    with _server() as url, Client(url) as client:
        _say(f"A server was started for the demo at {url}; the crops go there over HTTP.\n")
        sides = [_segment(client, name, scan, out) for name, scan in scans.items()]
    draw(sides, out / "demo.png")
    _say(f"Picture: {out / 'demo.png'}\nDone in {time.monotonic() - started:.1f} s. {RESEARCH_USE_ONLY}")
    _say("Next: calibrant serve, or calibrant predict SCAN -o OUT")


def crop_template(centre_mm: tuple[float, float, float], path: Path) -> Path:
    """Write the crop of the template around a point (MNI, RAS, mm) as a NIfTI file and return its path.

    Raises:
        SettingsError: nilearn is not installed.
    """
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        msg = "The demo's template comes with nilearn, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg)
    template = nib.Nifti1Image.from_filename(Path(package.origin).parent / TEMPLATE)
    centre = np.linalg.inv(template.affine) @ [*centre_mm, 1]
    start = [round(c - n / 2) for c, n in zip(centre[:3], CROP_VOXELS, strict=True)]
    i, j, k = (slice(s, s + n) for s, n in zip(start, CROP_VOXELS, strict=True))
    nib.save(template.slicer[i, j, k], path)
    return path


def draw(sides: list[Side], path: Path) -> None:
    """Draw the scan, the mask's outline and the confidence of each side through the middle of its mask.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "The demo draws with matplotlib, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg) from error
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(sides), 4)
    for row, side in zip(axes, sides, strict=True):
        image = _draw_side(row, side)
    figure.colorbar(image, ax=axes[:, 3], label="confidence of the mask's label", shrink=0.8)
    legend = "orange: anterior, blue: posterior hippocampus; P A L R: posterior, anterior, left, right"
    figure.suptitle(f"MNI152 template (average of 152 brains). {legend}\n{RESEARCH_USE_ONLY}", fontsize=10)
    figure.savefig(path, dpi=100)


def _draw_side(row: npt.NDArray[Any], side: Side) -> Any:  # noqa: ANN401 - matplotlib's own types are untyped
    scan, mask, confidence = (
        nib.as_closest_canonical(nib.load(path)).get_fdata()
        for path in (side.scan, side.files.mask, side.files.confidence)
    )
    middle = _middle(mask).round().astype(int)
    views = {"sagittal": (0, "P", "A"), "coronal": (1, "L", "R"), "axial": (2, "L", "R")}
    for axis_plot, (name, (axis, low, high)) in zip(row[:3], views.items(), strict=True):
        plane = (np.take(volume, middle[axis], axis).T for volume in (scan, mask))
        _draw_plane(axis_plot, *plane)
        axis_plot.set_title(f"{side.name} hippocampus, {name}", fontsize=9)
        box = {"facecolor": "black", "edgecolor": "none", "pad": 2}
        axis_plot.text(0.03, 0.5, low, color="white", transform=axis_plot.transAxes, va="center", bbox=box)
        axis_plot.text(0.97, 0.5, high, color="white", transform=axis_plot.transAxes, va="center", ha="right", bbox=box)
    planes = [np.take(volume, middle[0], 0).T for volume in (confidence, mask)]
    image = row[3].imshow(planes[0], origin="lower", cmap="viridis", vmin=1 / 3, vmax=1)
    row[3].contour(planes[1] > 0, levels=[0.5], colors="white", linewidths=0.8)
    row[3].set_title(f"{side.name}, sagittal: confidence", fontsize=9)
    for axis_plot in row:
        axis_plot.set_axis_off()
    return image


def _middle(mask: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the mean index of the mask's voxels, of the whole grid if it is empty."""
    inside = np.argwhere(mask > 0)
    return inside.mean(axis=0) if len(inside) else (np.array(mask.shape) - 1) / 2


def _draw_plane(axis_plot: Any, scan: npt.NDArray[np.float64], mask: npt.NDArray[np.float64]) -> None:  # noqa: ANN401 - as above
    axis_plot.imshow(scan, origin="lower", cmap="gray")
    for label, color in {1: "#e69f00", 2: "#56b4e9"}.items():
        if (mask == label).any():
            axis_plot.contourf(mask == label, levels=[0.5, 1], colors=[color], alpha=0.35)
            axis_plot.contour(mask == label, levels=[0.5], colors=[color], linewidths=1.5)


def _segment(client: Client, name: str, scan: Path, out: Path) -> Side:
    def show(job: Job) -> None:
        seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in job.seconds.items())
        _say(f"{name}: {job.state} {job.stage or ''} {seconds}".rstrip())

    result = client.segment(scan, show=show)
    files = Prediction.write(scan, out, result.mask, result.confidence, result.summary)
    mask = nib.Nifti1Image.from_filename(files.mask)
    x, y, z = nib.affines.apply_affine(mask.affine, _middle(np.asarray(mask.dataobj)))
    _say(files.report())
    _say(f"centre of the mask in MNI space (RAS): {x:+.0f}, {y:+.0f}, {z:+.0f} mm\n")
    return Side(name, scan, files)


@contextmanager
def _server() -> Iterator[str]:
    """Run `calibrant serve` on a free port with a state directory of its own, and yield its address."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        environment = os.environ | {"CALIBRANT_STATE_DIR": state}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603 - our own command
            try:
                yield _address(process)
            finally:
                process.terminate()


def _address(process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + START_S
    for line in process.stdout or ():
        if " is ready at " in line:
            return line.split()[5]
        if time.monotonic() > deadline:
            break
    msg = "The demo's server did not start. Run calibrant serve to see why."
    raise ServerUnreachable(msg)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
