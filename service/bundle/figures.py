"""Draw reliability diagrams of a cohort or of one image, and distributions of figures over cases, as PNG or SVG.

The style is that of the authors of mL1-ACE (calibration gap as a bar between mean probability and observed frequency,
counts below; images per cell as a heat map with normalised columns), in colours that avoid red against green.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from service.errors import SettingsError
from service.schemas import RESEARCH_USE_ONLY, Reliability, StructureReliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

LOG_FROM: Final = 100
"""Counts are drawn on a logarithmic axis if the largest is more than this many times the smallest."""

ACROSS: Final = 4
"""Number of diagrams of one image side by side; further structures go below."""

_GAP_COLOUR: Final = "#d5754a"
_DOT_COLOUR: Final = "#0072b2"


def draw_reliability(reliability: Reliability, picture_format: Format) -> bytes:
    """Return a picture with a column for each structure: the diagram above, the dataset histogram below.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    figure = _figure(1 + 4.2 * len(reliability.structures), 11, layout="constrained")
    title = f"{reliability.source}\n{reliability.n_cases} cases of {reliability.n_persons} persons. {RESEARCH_USE_ONLY}"
    figure.suptitle(title, fontsize=9, wrap=True)
    axes = figure.subplots(4, len(reliability.structures), squeeze=False, height_ratios=[4, 1, 4, 1], sharex=True)
    for column, structure in zip(axes.T, reliability.structures, strict=True):
        _frame(column[0], column[1])
        column[1].set_xlabel("")
        column[0].set_title(structure.name)
        _draw_gaps(column[0], structure, "pooled")
        _draw_counts(column[1], np.array(structure.count))
        _draw_images(column[2], structure)
        _draw_counts(column[3], np.array(structure.images).sum(axis=1))
        column[3].set(xlabel="mean predicted probability", ylabel="images")
    return _saved(figure, picture_format)


class CaseDiagrams:
    """Draws the reliability diagrams of one image after another into the same figure, because creating axes is slow.

    Raises:
        SettingsError: matplotlib is not installed.
    """

    def __init__(self, structures: Sequence[str]) -> None:
        """Lay out a diagram for each structure, with the number of voxels in each bin below it."""
        across = min(ACROSS, len(structures))
        rows = -(-len(structures) // across)
        # The title takes two lines, or four above a single diagram.
        head = 0.7 if across > 1 else 0.95
        width, height = 0.8 + 4.0 * across, head + 5.35 * rows
        self._figure = _figure(width, height)
        self._title = self._figure.suptitle("", fontsize=9, wrap=True, y=1 - 0.1 / height, va="top")
        grid = self._figure.add_gridspec(
            3 * rows, across, height_ratios=[3.6, 1, 0.55] * rows, hspace=0.09, wspace=0.28,
            left=0.75 / width, right=1 - 0.25 / width, bottom=-0.15 / height, top=1 - head / height,
        )  # fmt: skip
        self._axes = []
        for i, name in enumerate(structures):
            row, column = divmod(i, across)
            diagram = self._figure.add_subplot(grid[3 * row, column])
            counts = self._figure.add_subplot(grid[3 * row + 1, column], sharex=diagram)
            _frame(diagram, counts)
            diagram.set_title(name, fontsize=10)
            self._axes.append((diagram, counts))

    def draw(self, reliability: Reliability, picture_format: Format) -> bytes:
        """Return the picture of one image, whose structures are those of the constructor, in the same order."""
        self._title.set_text(f"{reliability.source}\n{RESEARCH_USE_ONLY}")
        drawn = []
        for (diagram, counts), structure in zip(self._axes, reliability.structures, strict=True):
            heading = "this image" if structure.ace is not None else "absent from\nthe reference"
            drawn += _draw_gaps(diagram, structure, heading)
            drawn += _draw_counts(counts, np.array(structure.count))
        picture = _saved(self._figure, picture_format)
        for artist in drawn:
            artist.remove()
        return picture


def draw_distribution(values: Mapping[str, Sequence[float]], label: str, picture_format: Format) -> bytes:
    """Return a picture of the distribution of a figure over cases: a row per structure, a dot per case.

    The bar spans the middle half of the cases, the tick is their median. Undefined figures (NaN) are left out.

    Args:
        values: of all cases, by structure.
        label: name of the figure, with its unit if it has one.
        picture_format: file format.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    figure = _figure(5.5, 0.9 + 0.55 * len(values), layout="constrained")
    axes = figure.subplots()
    for row, of_cases in enumerate(values.values()):
        finite = np.array([value for value in of_cases if np.isfinite(value)])
        # Multiples of the golden ratio spread the dots over the row's height reproducibly.
        height = row + 0.5 * ((np.arange(finite.size) * 0.618) % 1 - 0.5)
        axes.scatter(finite, height, s=16, color=_DOT_COLOUR, alpha=0.5, linewidths=0)
        if finite.size:
            low, median, high = np.quantile(finite, [0.25, 0.5, 0.75])
            axes.hlines(row + 0.38, low, high, color="black", linewidth=3)
            axes.vlines(median, row + 0.28, row + 0.48, color="black", linewidth=2)
    axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.4, -0.45), xlabel=label)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    return _saved(figure, picture_format)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "Drawing needs matplotlib, which is not installed: pip install 'calibrant[demo]'"
        raise SettingsError(msg) from error
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: "Figure", picture_format: Format) -> bytes:
    buffer = io.BytesIO()
    with _reproducible():
        figure.savefig(
            buffer, format=picture_format, dpi=110, metadata={"Date": None} if picture_format == "svg" else None
        )
    return buffer.getvalue()


@contextmanager
def _reproducible() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "calibrant"}):
        yield


def _frame(diagram: Any, counts: Any) -> None:  # noqa: ANN401 - matplotlib's own types are untyped
    """Draw the parts of a diagram that do not change from image to image."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    diagram.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
    diagram.tick_params(labelbottom=False)
    gap = Patch(facecolor=_GAP_COLOUR, alpha=0.45, hatch="//", label="gap")
    observed = Line2D([], [], color="black", linewidth=2, label="observed")
    perfect = Line2D([], [], color="grey", linestyle="--", linewidth=1, label="perfect")
    diagram.legend(handles=[gap, observed, perfect], loc="upper left", fontsize=8)
    counts.set(ylabel="voxels", xlabel="mean predicted probability")


def _draw_gaps(axes: Any, structure: StructureReliability, heading: str) -> list[Any]:  # noqa: ANN401 - as above
    filled = np.array(structure.count) > 0
    centres = (np.arange(len(filled)) + 0.5)[filled] / len(filled)
    mean_p = np.array(structure.mean_p, dtype=float)[filled]
    frequency = np.array(structure.frequency, dtype=float)[filled]
    width = 0.9 / len(filled)
    bars = _draw_bars(axes, centres, frequency, mean_p, width, facecolor=_GAP_COLOUR, alpha=0.45, hatch="//")
    observed = axes.hlines(frequency, centres - width / 2, centres + width / 2, color="black", linewidth=2)
    scores = {"ECE": structure.ece, "ACE": structure.ace, "MCE": structure.mce}
    lines = [heading, *(f"{name} {'-' if score is None else f'{score:.4f}'}" for name, score in scores.items())]
    text = axes.text(
        0.97, 0.04, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", family="monospace",
        fontsize=8, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2},
    )  # fmt: skip
    return [bars, observed, text]


def _draw_images(axes: Any, structure: StructureReliability) -> None:  # noqa: ANN401 - as above
    images = np.array(structure.images, dtype=float)
    total = images.sum(axis=1, keepdims=True)
    fraction = np.divide(images, total, out=np.zeros_like(images), where=total > 0)
    # The square root keeps one image in thirty visible.
    axes.imshow(np.sqrt(fraction.T), origin="lower", extent=(0, 1, 0, 1), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.plot([0, 1], [0, 1], color="white", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency, per image")


def _draw_counts(axes: Any, counts: npt.NDArray[np.int64]) -> list[Any]:  # noqa: ANN401 - as above
    bins = len(counts)
    filled = counts[counts > 0]
    logarithmic = bool(filled.size) and filled.max() > LOG_FROM * filled.min()
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_ylim(*(filled.min() / 2, filled.max() * 2) if logarithmic else (0, 1.1 * max(counts.max(), 1)))
    # A logarithmic axis has no 0 at which a bar could start.
    low = np.full(bins, filled.min() / 4 if logarithmic else 0)
    centres = (np.arange(bins) + 0.5) / bins
    return [_draw_bars(axes, centres, low, np.maximum(counts, low), 0.9 / bins, facecolor="#555555")]


def _draw_bars(
    axes: Any,  # noqa: ANN401 - as above
    centres: npt.NDArray[np.float64],
    ends: npt.NDArray[np.float64],
    other_ends: npt.NDArray[np.float64],
    width: float,
    **style: Any,  # noqa: ANN401 - as above
) -> Any:  # noqa: ANN401 - as above
    """Draw all bars as one artist: the many patches of `Axes.bar` take half as long again."""
    from matplotlib.collections import PolyCollection

    left, right = centres - width / 2, centres + width / 2
    corners = np.stack([left, ends, right, ends, right, other_ends, left, other_ends], axis=1).reshape(-1, 4, 2)
    return axes.add_collection(PolyCollection(list(corners), linewidths=0, **style), autolim=False)
