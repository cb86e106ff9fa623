import io

import numpy as np
import pytest
from matplotlib.image import imread

from model_training.comparison.front import draw_front
from model_training.comparison.tables import FIGURES, Comparison
from service.bundle.figures import Format


def comparison(ace: float) -> Comparison:
    """Return an invented comparison in which one configuration has this ACE."""
    rows = {("dice-ce", False): 0.08, ("dice-ce", True): 0.085, ("rival <&>", False): ace}
    spread = np.linspace(-0.01, 0.01, 41)
    return Comparison(
        "12 cases of 6 persons.",
        {key: {name: np.concatenate([[value], value + spread]) for name in FIGURES} for key, value in rows.items()},
    )


def test_every_configuration_stands_in_the_legend() -> None:
    """The SVG names the cases and, once, each configuration, with special characters escaped."""
    picture = draw_front(comparison(0.06), "svg").decode()

    assert picture.count("<!-- dice-ce -->") == 1
    assert "rival &lt;&amp;&gt;" in picture
    assert "12 cases of 6 persons." in picture


@pytest.mark.parametrize("picture_format", ["png", "svg"])
def test_the_picture_follows_the_figures(picture_format: Format) -> None:
    """Another ACE gives another picture; a PNG can be read."""
    first, other = (draw_front(comparison(ace), picture_format) for ace in (0.06, 0.07))

    if picture_format == "png":
        assert not np.array_equal(imread(io.BytesIO(first)), imread(io.BytesIO(other)))
    else:
        assert first != other
