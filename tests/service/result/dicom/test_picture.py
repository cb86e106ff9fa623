from collections.abc import Callable

import numpy as np
import pytest

from service.result.dicom.outcome import Outcome
from service.result.dicom.picture import SIZE, draw_page
from service.schemas import Structure

Changed = Callable[..., Outcome]


def test_the_page_shows_the_mask_in_its_colours(outcome: Outcome) -> None:
    """Both structures of the shown slice appear in the colours of the bundle."""
    page = draw_page(outcome)

    assert page.shape == (SIZE[1], SIZE[0], 3)
    assert page.dtype == np.uint8
    colors = {tuple(int(part) for part in color) for color in np.unique(page.reshape(-1, 3), axis=0)}
    assert {label.color for label in outcome.labels[:2]} <= colors


def test_research_use_only_is_burnt_in(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The band at the top contains letters, which vanish without the banner's text."""
    page = draw_page(outcome)
    assert len(np.unique(page[:40].reshape(-1, 3), axis=0)) > 2

    monkeypatch.setattr("service.result.dicom.picture.BANNER", "")
    assert (draw_page(outcome)[:40] == page[0, 0]).all()


def test_the_page_is_the_same_each_time(outcome: Outcome) -> None:
    """Equal results give equal pixels."""
    np.testing.assert_array_equal(draw_page(outcome), draw_page(outcome))


def test_the_page_does_not_name_the_patient(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts on the page do not contain the canary."""
    written: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda _draw, _at, text, **_options: written.append(text))
    draw_page(outcome)

    assert len(written) > 10
    assert "CANARY" not in " ".join(written)
    assert "It is too large." in written


def test_long_content_is_cut_off(changed: Changed, outcome: Outcome) -> None:
    """Structures and text that do not fit are left to the report."""
    many = [
        Structure(label=n, name=f"structure {n}", voxels=1, volume_ml=0.1, mean_confidence=None) for n in range(1, 60)
    ]
    long = outcome.summary.model_copy(update={"structures": many, "warnings": ["much text " * 60] * 9})

    assert draw_page(changed(summary=long)).shape == (SIZE[1], SIZE[0], 3)


def test_an_empty_mask_has_a_page(changed: Changed, outcome: Outcome) -> None:
    """The whole first slice is shown without colours."""
    page = draw_page(changed(mask_KRC=np.zeros_like(outcome.mask_KRC)))
    assert not (page == np.array(outcome.labels[0].color)).all(axis=-1).any()
