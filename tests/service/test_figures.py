import io

import numpy as np
import pytest
from PIL import Image

from service import figures
from service.errors import SettingsError
from service.figures import draw_reliability
from service.schemas import Reliability, StructureReliability


def reliability(structures: int = 2) -> Reliability:
    """Return the reliability of a model that always says 0.3 too much, where it says anything."""
    mean_p = [None, *(0.025 + k / 20 for k in range(1, 19)), None]
    one = StructureReliability(
        name="hippocampus",
        count=[0, *(10**k for k in range(1, 7)), *[50] * 12, 0],
        mean_p=mean_p,
        frequency=[None if p is None else max(p - 0.3, 0) for p in mean_p],
        images=[[int(abs(i - j) < 3) for j in range(20)] for i in range(20)],
        ece=0.2,
        ace=0.25,
        mce=None,
    )
    return Reliability(source="a made-up data set", n_cases=7, n_persons=5, structures=[one] * structures)


def test_the_picture_is_not_blank() -> None:
    """A PNG of some size with both structures: left and right half hold ink."""
    pixels = np.asarray(Image.open(io.BytesIO(draw_reliability(reliability(), "png"))).convert("L"))

    assert min(pixels.shape) > 500
    left, right = np.array_split(pixels, 2, axis=1)
    assert left.std() > 20
    assert right.std() > 20


def test_it_says_what_was_measured_on_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source, cases, persons, scores and the limit of use are text of the drawing."""
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")

    svg = draw_reliability(reliability(1), "svg").decode()

    for text in ("a made-up data set", "7 cases of 5 persons", "For research use only", "ECE 0.2000", "MCE -"):
        assert text in svg


def test_without_matplotlib_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing optional library is a sentence, not an ImportError."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingsError, match="pip install"):
        figures.draw_reliability(reliability(), "png")
