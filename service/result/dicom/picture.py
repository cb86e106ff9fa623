"""Outcome -> one RGB page: the slice with the largest mask, its confidence, a table of structures and the statement.

The page does not name the patient, and says in its pixels that it is for research use only.
"""

import textwrap
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from service.result.dicom.outcome import Outcome
from service.schemas import WITHDRAWN, Structure

SIZE: Final = (1024, 768)
"""Columns and rows of the page."""

BANNER: Final = "AI RESULT - RESEARCH USE ONLY - NOT FOR DIAGNOSIS OR TREATMENT"
"""Burnt into the page."""

_SHORT: Final = "AI RESULT - RESEARCH USE ONLY"

_PAPER, _BAND, _INK, _FAINT = (16, 16, 16), (120, 60, 0), (235, 235, 235), (165, 165, 165)
_ALARM: Final = (190, 0, 0)
"""Colour of the band of a withdrawn result."""
_EDGE, _PICTURE, _RIGHT = 24, 300, 350
_TABLE_AT, _ROW, _LINE, _WRAP = 110, 22, 19, 92
_COLUMNS: Final = (0, 290, 420, 540)
_MOST_ROWS: Final = 12
_AROUND: Final = 0.25
"""Margin shown around the mask, as a fraction of its extent."""


def draw_page(outcome: Outcome) -> npt.NDArray[np.uint8]:
    """Return the page, (rows, columns, 3) uint8."""
    page = Image.new("RGB", SIZE, _PAPER)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, SIZE[0], 40), fill=_ALARM if outcome.withdrawn else _BAND)
    draw.text((_EDGE, 9), banner_of(outcome), font=_font(20), fill=_INK)
    model = f"{outcome.model.name} {outcome.model.version}, {outcome.created:%Y-%m-%d %H:%M} UTC"
    draw.text((_EDGE, 52), model, font=_font(16), fill=_INK)
    _paste_pictures(page, draw, outcome)
    rows = _write_table(draw, outcome.summary.structures)
    _write_lines(draw, outcome, _TABLE_AT + (rows + 1) * _ROW)
    return np.asarray(page)


def banner_of(outcome: Outcome) -> str:
    """Return the text that is burnt into the page: its use and, in front of it, that the result is withdrawn."""
    return f"{WITHDRAWN} DO NOT USE THIS MASK - {_SHORT}" if outcome.withdrawn else BANNER


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _paste_pictures(page: Image.Image, draw: ImageDraw.ImageDraw, outcome: Outcome) -> None:
    k = int((outcome.mask_KRC > 0).sum(axis=(1, 2)).argmax())
    rows, columns = _box(outcome.mask_KRC[k])
    colors = np.array([(0, 0, 0), *(label.color for label in outcome.labels)], np.uint8)
    largest = np.iinfo(outcome.confidence_KRC.dtype).max
    grey = (outcome.confidence_KRC[k] / largest * 255).astype(np.uint8)
    pictures = {"mask": colors[outcome.segments[k]], "confidence": np.repeat(grey[..., np.newaxis], 3, axis=-1)}
    for number, (title, pixels) in enumerate(pictures.items()):
        top = _TABLE_AT + number * (_PICTURE + 30)
        words = f"{title}, slice {k + 1} of {len(outcome.mask_KRC)}, as stored"
        draw.text((_EDGE, top - 20), words, font=_font(14), fill=_FAINT)
        page.paste(_scaled(pixels[rows, columns], outcome.source.pixel_spacing_mm), (_EDGE, top))


def _box(mask: npt.NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns of the mask with a margin; all of them if the mask is empty."""
    box = []
    for axis in (1, 0):
        (filled,) = np.nonzero(mask.any(axis=axis))
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, mask.shape[1 - axis] - 1)
        margin = max(4, round(_AROUND * (last - first)))
        box.append(slice(max(first - margin, 0), last + margin + 1))
    return box[0], box[1]


def _scaled(pixels: npt.NDArray[np.uint8], spacing_mm: tuple[float, float]) -> Image.Image:
    """Scale a picture into its square, with the same scale in millimetres in both directions."""
    height, width = pixels.shape[0] * spacing_mm[0], pixels.shape[1] * spacing_mm[1]
    scale = _PICTURE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def _write_table(draw: ImageDraw.ImageDraw, structures: list[Structure]) -> int:
    """Write a header and a row for each structure, and return the number of rows."""
    rows = [("structure", "volume", "confidence", "lowest 5 %"), *map(_row, structures[:_MOST_ROWS])]
    if len(structures) > _MOST_ROWS:
        rows.append((f"and {len(structures) - _MOST_ROWS} more, see the report", "", "", ""))
    for number, row in enumerate(rows):
        for column, text in zip(_COLUMNS, row, strict=True):
            position = (_RIGHT + column, _TABLE_AT + number * _ROW)
            draw.text(position, text, font=_font(15), fill=_INK if number else _FAINT)
    return len(rows)


def _row(structure: Structure) -> tuple[str, str, str, str]:
    figures = (structure.mean_confidence, structure.p5_confidence)
    mean, lowest = ("-" if figure is None else f"{figure:.3f}" for figure in figures)
    return structure.name[:34], structure.volume_text, mean, lowest


def _write_lines(draw: ImageDraw.ImageDraw, outcome: Outcome, top: int) -> None:
    for number, line in enumerate(page_lines(outcome)):
        y = top + number * _LINE
        if y > SIZE[1] - 2 * _LINE:
            draw.text((_RIGHT, y), "... see the report", font=_font(14), fill=_FAINT)
            return
        draw.text((_RIGHT, y), line, font=_font(14), fill=_INK)


def page_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of text beside the pictures."""
    summary = outcome.summary
    yield f"Statement of the calibration card: {summary.statement.status}"
    notes = (f"Note: {warning}" for warning in summary.warnings)
    for text in (summary.statement.text, *summary.statement.reasons, *notes, summary.research_use_only):
        yield from textwrap.wrap(text, _WRAP)
        yield ""
