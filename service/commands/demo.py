"""`calibrant demo`: starts a server, segments both hippocampi of the MNI152 template over HTTP and draws the result.

The template is an average of 152 brains, not a person: the demo shows that the path works, and measures nothing. The
template is part of nilearn's wheel (International Consortium for Brain Mapping); nothing is downloaded.
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
from service.commands.predict import Prediction
from service.errors import ServerUnreachable, SettingsError
from service.schemas import RESEARCH_USE_ONLY, Job

TEMPLATE: Final = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""Path of the template inside nilearn: T1-weighted, 1 mm, MNI space, without the skull."""

SIDES: Final = {"left": (11, 12), "right": (21, 22)}
"""Label values of the anterior and the posterior hippocampus of each side."""

COLOURS: Final = ("#e69f00", "#56b4e9")
"""Colours of the anterior and the posterior hippocampus."""

VIEW_MM: Final = 32
"""Half the edge of the region that is drawn around a hippocampus."""

_WITHDRAWN: Final = "WITHDRAWN: this answer is unlike those that the model was measured on. Do not rely on the mask."
"""Under the picture of a withdrawn answer."""

START_S: Final = 60.0
"""Seconds within which the server must be ready."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Scan, mask and confidence of the demo on one grid with axes to the right, anterior and superior (RAS).

    Args:
        scan: (D, H, W) intensities.
        mask: (D, H, W) label values.
        confidence: (D, H, W) in [0, 1].
        affine: (4, 4) voxel index to RAS millimetres.
    """

    scan: Array
    mask: Array
    confidence: Array
    affine: Array

    @classmethod
    def read(cls, scan: Path, files: Prediction) -> "Images":
        """Return the images of a segmented scan."""
        image, mask, confidence = (
            nib.as_closest_canonical(nib.load(path)) for path in (scan, files.mask, files.confidence)
        )
        return cls(image.get_fdata(), mask.get_fdata(), confidence.get_fdata(), image.affine)

    def middle(self, side: str) -> Array:
        """Return the (3,) mean index of a side's voxels, or the centre of the grid if the side has none."""
        inside = np.argwhere(np.isin(self.mask, SIDES[side]))
        return inside.mean(axis=0) if len(inside) else (np.array(self.mask.shape) - 1) / 2


def run_demo(out: Path) -> None:
    """Start a server, segment the template, and write results and `demo.png` into the folder `out`.

    Raises:
        SettingsError: nilearn or matplotlib is not installed.
        ServerUnreachable: the server did not start.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    scan = template()
    _say("The MNI152 T1 template: the brains of 152 persons, averaged. A whole head, not cropped.")
    with _server() as url, Client(url) as client:
        _say(f"A server was started for the demo at {url}; the scan goes there over HTTP.\n")
        files = _segment(client, scan, out)
    _say(files.report())
    images = Images.read(scan, files)
    for side in SIDES:
        x, y, z = nib.affines.apply_affine(images.affine, images.middle(side))
        _say(f"centre of the {side} hippocampus in MNI space (RAS): {x:+.0f}, {y:+.0f}, {z:+.0f} mm")
    draw(images, out / "demo.png", withdrawn=files.withdrawn)
    _say(f"\nPicture: {out / 'demo.png'}\nDone in {time.monotonic() - started:.1f} s. {RESEARCH_USE_ONLY}")
    _say("Next: calibrant serve, or calibrant predict SCAN -o OUT")


def template() -> Path:
    """Return the path of the template.

    Raises:
        SettingsError: nilearn is not installed.
    """
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        msg = "The demo's template comes with nilearn, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg)
    return Path(package.origin).parent / TEMPLATE


def draw(images: Images, path: Path, *, withdrawn: bool = False) -> None:
    """Draw, for each side, the whole head, the mask's outline in three planes, and the confidence.

    Args:
        images: to draw.
        path: of the picture.
        withdrawn: whether the statement is withdrawn; then the title says so first.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "The demo draws with matplotlib, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg) from error
    figure = Figure(figsize=(14, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(SIDES), 5)
    for row, side in zip(axes, SIDES, strict=True):
        shown = _draw_side(row, images, side)
    figure.colorbar(shown, ax=axes[:, 4], label="confidence of the mask's label", shrink=0.8)
    legend = "orange: anterior, blue: posterior hippocampus; P A L R: posterior, anterior, left, right"
    if withdrawn:
        figure.supxlabel(_WITHDRAWN, color="red", fontsize=14, weight="bold")
    figure.suptitle(f"MNI152 template (average of 152 brains), as it comes. {legend}\n{RESEARCH_USE_ONLY}", fontsize=10)
    figure.savefig(path, dpi=100)


def _draw_side(row: Array, images: Images, side: str) -> Any:  # noqa: ANN401 - matplotlib's own types are untyped
    middle = images.middle(side).round().astype(int)
    near = [slice(max(int(m - VIEW_MM), 0), int(m + VIEW_MM)) for m in middle]
    _draw_plane(row[0], images.scan[middle[0]], images.mask[middle[0]], side)
    (_, h, w) = near
    row[0].plot([h.start, h.stop, h.stop, h.start, h.start], [w.start, w.start, w.stop, w.stop, w.start], "w--", lw=0.8)
    row[0].set_title(f"{side} side of the head, sagittal", fontsize=9)
    views = {"sagittal": (0, "P", "A"), "coronal": (1, "L", "R"), "axial": (2, "L", "R")}
    for axis_plot, (name, (axis, low, high)) in zip(row[1:4], views.items(), strict=True):
        window = tuple(int(middle[axis]) if other == axis else edge for other, edge in enumerate(near))
        _draw_plane(axis_plot, images.scan[window], images.mask[window], side)
        axis_plot.set_title(f"{side} hippocampus, {name}", fontsize=9)
        box = {"facecolor": "black", "edgecolor": "none", "pad": 2}
        axis_plot.text(0.03, 0.5, low, color="white", transform=axis_plot.transAxes, va="center", bbox=box)
        axis_plot.text(0.97, 0.5, high, color="white", transform=axis_plot.transAxes, va="center", ha="right", bbox=box)
    sagittal = (int(middle[0]), near[1], near[2])
    shown = row[4].imshow(images.confidence[sagittal].T, origin="lower", cmap="viridis", vmin=1 / 3, vmax=1)
    if (here := np.isin(images.mask[sagittal], SIDES[side])).any():
        row[4].contour(here.T, levels=[0.5], colors="white", linewidths=0.8)
    row[4].set_title(f"{side}, sagittal: confidence", fontsize=9)
    for axis_plot in row:
        axis_plot.set_axis_off()
    return shown


def _draw_plane(axis_plot: Any, scan: Array, mask: Array, side: str) -> None:  # noqa: ANN401 - as above
    axis_plot.imshow(scan.T, origin="lower", cmap="gray")
    for label, colour in zip(SIDES[side], COLOURS, strict=True):
        here = np.equal(mask.T, label)
        if here.any():
            axis_plot.contourf(here, levels=[0.5, 1], colors=[colour], alpha=0.35)
            axis_plot.contour(here, levels=[0.5], colors=[colour], linewidths=1.5)


def _segment(client: Client, scan: Path, out: Path) -> Prediction:
    def show(job: Job) -> None:
        seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in job.seconds.items())
        _say(f"{job.state} {job.stage or ''} {seconds}".rstrip())

    result = client.segment(scan, show=show)
    return Prediction.write(scan, out, result.mask, result.confidence, result.summary)


@contextmanager
def _server() -> Iterator[str]:
    """Run `calibrant serve` on a free port with a temporary state directory, and yield its address."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        environment = os.environ | {"CALIBRANT_STATE_DIR": state}
        # The server's log would appear between the lines of the demo.
        with subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as process:
            try:
                yield _address(process)
            finally:
                process.terminate()


def _address(process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + START_S
    for line in process.stdout or ():
        if " listens at " in line:
            return line.split()[4]
        if time.monotonic() > deadline:
            break
    msg = "The demo's server did not start. Run calibrant serve to see why."
    raise ServerUnreachable(msg)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
