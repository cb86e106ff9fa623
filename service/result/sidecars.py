"""Sidecars of an image in `bundle.zip`, in the style of BIDS derivatives (bids-specification 1.10)."""

import json
from typing import Any

from service.result.frame import Frame


def mask_sidecars(frame: Frame) -> dict[str, bytes]:
    """Return the sidecars of a mask by extension: its description and the table of labels."""
    return {".json": to_json({"SpatialReference": "orig", "Manual": False}), ".tsv": label_table(frame)}


def confidence_sidecars(frame: Frame) -> dict[str, bytes]:
    """Return the sidecars of a confidence map by extension: its description."""
    description = {
        "SpatialReference": "orig",
        "Manual": False,
        "LabelMap": [label.name for label in frame.config.labels],
        "Description": "Calibrated probability of the label that the mask has at each voxel, in [1/C, 1].",
    }
    return {".json": to_json(description)}


def label_table(frame: Frame) -> bytes:
    """Return BIDS' tab-separated table of a discrete segmentation: index, name, abbreviation, color."""
    rows = [
        f"{label.value}\t{label.name}\t{_abbreviation(label.name)}\t#{bytes(label.color).hex()}"
        for label in frame.config.labels
    ]
    return "\n".join(["index\tname\tabbreviation\tcolor", *rows, ""]).encode()


def to_json(content: dict[str, Any]) -> bytes:
    """Return the text of a sidecar."""
    return (json.dumps(content, indent=2) + "\n").encode()


def _abbreviation(name: str) -> str:
    return "".join(word[0] for word in name.split()).upper() if " " in name else name[:3].upper()
