"""Drawings of a `Reliability`: diagram and dataset reliability histogram of each structure, as PNG or SVG.

As the authors of mL1-ACE draw them (calibration gap as a bar between mean probability and observed frequency, counts
below; images per cell as a heat map with normalised columns), in colours that do not depend on red and green.
"""

import io
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from service.errors import SettingsError
from service.schemas import RESEARCH_USE_ONLY, Reliability, StructureReliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

LOG_FROM: Final = 100
"""Counts are drawn on a logarithmic axis when the largest is so many times the smallest."""


def draw_reliability(reliability: Reliability, kind: Format) -> bytes:
    """Return a picture of all structures: a column each, the diagram above, the dataset histogram below.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    figure = _figure(len(reliability.structures))
    title = f"{reliability.source}\n{reliability.n_cases} cases of {reliability.n_persons} persons. {RESEARCH_USE_ONLY}"
    figure.suptitle(title, fontsize=9, wrap=True)
    axes = figure.subplots(4, len(reliability.structures), squeeze=False, height_ratios=[4, 1, 4, 1], sharex=True)
    for column, structure in zip(axes.T, reliability.structures, strict=True):
        _draw_diagram(column[0], structure)
        _draw_counts(column[1], np.array(structure.count), "voxels")
        _draw_images(column[2], structure)
        _draw_counts(column[3], np.array(structure.images).sum(axis=1), "images")
        column[3].set_xlabel("mean predicted probability")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def _figure(structures: int) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "Drawing needs matplotlib, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg) from error
    figure = Figure(figsize=(1 + 4.2 * structures, 11), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_diagram(axes: Any, structure: StructureReliability) -> None:  # noqa: ANN401 - matplotlib's own types are untyped
    filled = np.array(structure.count) > 0
    centres = (np.arange(len(filled)) + 0.5)[filled] / len(filled)
    mean_p = np.array(structure.mean_p, dtype=float)[filled]
    frequency = np.array(structure.frequency, dtype=float)[filled]
    width = 0.9 / len(structure.count)
    axes.bar(centres, mean_p - frequency, width, frequency, color="#d5754a", alpha=0.45, hatch="//", label="gap")
    axes.hlines(frequency, centres - width / 2, centres + width / 2, color="black", linewidth=2, label="observed")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect")
    axes.set(title=structure.name, xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
    scores = {"ECE": structure.ece, "ACE": structure.ace, "MCE": structure.mce}
    text = "\n".join(f"{name} {'-' if score is None else f'{score:.4f}'}" for name, score in scores.items())
    axes.text(
        0.97, 0.05, f"pooled\n{text}", transform=axes.transAxes, ha="right", va="bottom", family="monospace", fontsize=8
    )
    axes.legend(loc="upper left", fontsize=8)


def _draw_images(axes: Any, structure: StructureReliability) -> None:  # noqa: ANN401 - as above
    images = np.array(structure.images, dtype=float)
    total = images.sum(axis=1, keepdims=True)
    share = np.divide(images, total, out=np.zeros_like(images), where=total > 0)
    # The square root of the share: one image in thirty must still be seen.
    axes.imshow(np.sqrt(share.T), origin="lower", extent=(0, 1, 0, 1), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.plot([0, 1], [0, 1], color="white", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency, per image")


def _draw_counts(axes: Any, counts: "np.ndarray[Any, Any]", what: str) -> None:  # noqa: ANN401 - as above
    bins = len(counts)
    axes.bar((np.arange(bins) + 0.5) / bins, counts, 0.9 / bins, color="#555555")
    filled = counts[counts > 0]
    if filled.size and filled.max() > LOG_FROM * filled.min():
        axes.set_yscale("log")
    axes.set_ylabel(what)
