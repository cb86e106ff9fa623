import json

import pytest

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from service.result.frame import Frame
from service.result.sidecars import confidence_sidecars, label_table, mask_sidecars


@pytest.fixture(name="frame")
def frame_() -> Frame:
    """Return the frame of a case of the shipped bundle."""
    return Frame(
        scan_shape=(1, 1, 1), orientation=[(0, 1), (1, 1), (2, 1)], oriented_shape=(1, 1, 1), network_shape=(1, 1, 1), step=(1, 1, 1),
        affine=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], header="",
        config=describe_bundle(SHIPPED / "hippocampus-mr").config,
    )  # fmt: skip


def test_a_name_of_one_word_is_abbreviated(frame: Frame) -> None:
    """Three letters stand for one word, initials for several."""
    rows = [line.split("\t") for line in label_table(frame).decode().splitlines()]

    assert [row[2] for row in rows[1:]] == ["BAC", "AH", "PH"]


def test_a_mask_comes_with_its_table_of_labels(frame: Frame) -> None:
    """The description says that the grid is the scan's and that the mask was not drawn by hand."""
    sidecars = mask_sidecars(frame)

    assert json.loads(sidecars[".json"]) == {"SpatialReference": "orig", "Manual": False}
    assert sidecars[".tsv"] == label_table(frame)


def test_a_confidence_map_names_its_labels(frame: Frame) -> None:
    """The names are in the order of the classes."""
    description = json.loads(confidence_sidecars(frame)[".json"])

    assert description["LabelMap"] == ["background", "anterior hippocampus", "posterior hippocampus"]
