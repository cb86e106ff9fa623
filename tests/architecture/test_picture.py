"""docs/architecture.svg shows the rooms and imports that the code has."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import draw_architecture  # noqa: E402 - a script, not a package
from draw_architecture import ROOMS, arrows, draw, imports  # noqa: E402


def test_the_picture_is_up_to_date() -> None:
    """Drawn from the imports of today, it is the committed file; scripts/draw_architecture.py writes it."""
    assert draw_architecture.PICTURE.read_text() == draw(imports())


def test_a_room_without_a_place_is_an_error() -> None:
    """A new room is named, so that whoever adds it also draws it."""
    with pytest.raises(ValueError, match=r"differ in service\.attic"):
        draw(imports() | {("service.attic", "service.bundle")})


def test_arrows_that_follow_from_others_are_left_out() -> None:
    """Of a to b, b to c and a to c, the third is not drawn; neither is an arrow to the ground."""
    pairs = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "service.errors")}

    assert arrows(pairs) == [("a", "b"), ("b", "c")]


def test_no_arrow_points_upwards() -> None:
    """A room is drawn above, or beside, the rooms that it imports."""
    assert all(ROOMS[importer].row <= ROOMS[imported].row + 1e-9 for importer, imported in arrows(imports()))


def test_every_room_stands_in_the_picture() -> None:
    """The picture is XML that names each room once."""
    texts = [text.text for text in ET.fromstring(draw(imports())).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314

    assert all(texts.count(name.partition(".")[2]) == 1 for name in ROOMS)
