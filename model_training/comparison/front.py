"""The picture of a comparison: segmentation against calibration, a point for each configuration, with intervals."""

import io
from typing import Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model_training.comparison.tables import BASELINE, Comparison
from service.bundle.figures import Format
from service.calibration.cohort import estimate

_COLOURS: Final = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw_front(comparison: Comparison, picture_format: Format) -> bytes:
    """Return the picture: DSC on the x-axis, macro ACE and its excess over the floor on the y-axes; lower right is best.

    Filled points are without a temperature, hollow ones with the fitted one; bars are 95 % intervals.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for name, _ in comparison.figures))
    for axes, (score, title) in zip(
        figure.subplots(1, 2), {"ace_macro": "macro ACE", "ace_excess": "ACE above its floor"}.items(), strict=True
    ):
        for (name, scaled), draws in comparison.figures.items():
            x, y = estimate(draws["dsc"]), estimate(draws[score])
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            axes.errorbar(
                x.value,
                y.value,
                xerr=[[x.value - x.low], [x.high - x.value]],
                yerr=[[y.value - y.low], [y.high - y.value]],
                fmt="s" if name == BASELINE else "o",
                color=colour,
                markerfacecolor="white" if scaled else colour,
                markersize=8,
                elinewidth=0.5,
                alpha=0.9,
                label=None if scaled else name,
            )
        axes.set(xlabel="DSC", ylabel=title)
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(f"{comparison.cases} Hollow: with a fitted temperature. Bars: 95 % intervals.", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=picture_format, dpi=110)
    return buffer.getvalue()
