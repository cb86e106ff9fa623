import io

import numpy as np
import pytest
from PIL import Image

from service.bundle import figures
from service.bundle.figures import CaseDiagrams, draw_distribution, draw_reliability
from service.errors import SettingsError
from service.schemas import Reliability, StructureReliability


def reliability(structures: int = 2) -> Reliability:
    """Return the reliability of a model that is overconfident by 0.3 in every filled bin."""
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
    """The PNG shows both structures: its left and right halves have content."""
    pixels = np.asarray(Image.open(io.BytesIO(draw_reliability(reliability(), "png"))).convert("L"))

    assert min(pixels.shape) > 500
    left, right = np.array_split(pixels, 2, axis=1)
    assert left.std() > 20
    assert right.std() > 20


def test_the_picture_names_source_scores_and_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source, cases, persons, scores and the limit of use are text in the picture."""
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")

    svg = draw_reliability(reliability(1), "svg").decode()

    for text in ("a made-up data set", "7 cases of 5 persons", "For research use only", "ECE 0.2000", "MCE -"):
        assert text in svg


def grey(png: bytes) -> np.ndarray:
    """Return the pixels of a picture."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_an_image_is_drawn_as_if_it_were_the_first() -> None:
    """Neither bars nor a logarithmic axis of the previous image remain in the figure."""
    one = reliability().model_copy(update={"source": "image 1", "n_cases": 1, "n_persons": 1})
    few = [s.model_copy(update={"count": [0, *[5] * 18, 0], "ece": 0.125}) for s in one.structures]
    other = one.model_copy(update={"source": "image 2", "structures": few})
    used = CaseDiagrams(["hippocampus", "hippocampus"])
    used.draw(one, "png")

    fresh = CaseDiagrams(["hippocampus", "hippocampus"]).draw(other, "png")

    np.testing.assert_array_equal(grey(used.draw(other, "png")), grey(fresh))
    assert (grey(fresh) != grey(used.draw(one, "png"))).any()
    assert used.draw(one, "svg") == used.draw(one, "svg")


def test_an_image_says_which_it_is_and_what_it_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source, scores and the limit of use are text; a structure that the reference lacks is marked as absent."""
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    one = reliability()
    absent = one.structures[0].model_copy(update={"ece": None, "ace": None, "mce": None})
    one = one.model_copy(update={"structures": [one.structures[0], absent]})

    svg = CaseDiagrams(["front", "back"]).draw(one, "svg").decode()

    for text in ("a made-up data set", "For research use only", "front", "back", "ACE 0.2500", "absent from"):
        assert text in svg


def test_many_structures_stand_in_rows() -> None:
    """With at most four per row, five structures take two rows and twice the height."""
    heights = []
    for n in (4, 5):
        pixels = grey(CaseDiagrams(["hippocampus"] * n).draw(reliability(n), "png"))
        assert pixels.shape[1] < 2000
        heights.append(pixels.shape[0])

    assert heights[1] > 1.8 * heights[0]


def test_counts_are_logarithmic_from_a_hundredfold() -> None:
    """The axis is linear up to a ratio of 100 and for empty counts, and logarithmic above."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    scales = []
    for counts in ([1, 0, 100], [1, 0, 101], [0, 0, 0]):
        figures._draw_counts(axes, np.array(counts))
        scales.append(axes.get_yscale())

    assert scales == ["linear", "log", "linear"]


def test_a_distribution_has_a_dot_per_defined_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four values are defined and give three dots; a structure without values keeps its row and name."""
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")

    values = {"front": [0.1, 0.4, float("nan"), 0.9], "back": [float("nan")]}
    svg = draw_distribution(values, "DSC", "svg").decode()

    (dots,) = [part for part in svg.split("<g id=")[1:] if part.startswith('"PathCollection_1"')]
    assert dots.count("<use") == 3
    for text in ("front", "back", "DSC"):
        assert text in svg


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing optional library gives a SettingsError instead of an ImportError."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingsError, match="pip install"):
        figures.draw_reliability(reliability(), "png")
