import base64
import dataclasses
import datetime as dt
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_training.evaluation.evaluate import Evaluation
from model_training.evaluation.report import extremes, over_persons, report_html, write_report
from model_training.evaluation.results import Row
from model_training.evaluation.surfaces import SurfaceScores
from service.bundle.description import describe_bundle
from service.schemas import RESEARCH_USE_ONLY


class Page(HTMLParser):
    """Collects elements and text of a page, and fails if elements are not nested properly."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Record the text that a reader sees."""
        if "style" not in self._open:
            self.words += re.sub(r"\s+", " ", data) + " "


@pytest.fixture
def evaluation(tiny_bundle: Path) -> Evaluation:
    """Return an evaluation of the tiny bundle with two cases, of persons A and B."""
    description = describe_bundle(tiny_bundle)
    return Evaluation(
        measurement=description.card.measurements[0],
        structures=["front", "back"],
        surfaces={
            "case of A": [SurfaceScores(1.0, 0.75), SurfaceScores(2.0, 0.5)],
            "case of B": [SurfaceScores(3.0, 0.25), SurfaceScores(math.nan, 0.0)],
        },
        nsd_tolerance_mm=1.0,
        model="tiny",
        version="0.0.1",
        identity=description.identity,
        population=description.card.population,
        split="all",
        trained_on=False,
        conventions=description.card.conventions,
        date=dt.date(2026, 1, 31),
    )


def row(case: str, structure: str, dsc: float, ace: float) -> Row:
    """Return a row whose other fields do not matter."""
    nothing: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Row)}
    return Row(**nothing | {"case": case, "structure": structure, "dsc": dsc, "ace": ace})


def test_the_page_says_what_was_measured_on_whom(evaluation: Evaluation) -> None:
    """The page shows bundle, data, split, persons, date, the limit of use, and the figures with their names."""
    words = Page(report_html(evaluation)).words

    for text in (
        evaluation.identity, "2 labelled cases of 2 persons", "two boxes", "nobody, 2026", "2026-01-31",
        "front, back", "0.250 to 0.750", "0.125 to 0.625", "1.00 to 3.00", "+0.0", "all, on which the recipe does not train",
    ):  # fmt: skip
        assert text in words, text
    assert words.count(RESEARCH_USE_ONLY) >= 2


def test_the_page_is_self_contained(evaluation: Evaluation) -> None:
    """The page has no scripts, links or external addresses; every picture is an embedded SVG."""
    page = Page(report_html(evaluation))

    assert {"script", "link", "iframe", "a"}.isdisjoint(tag for tag, _ in page.elements)
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 2 + 2 + 2  # structures, distributions, cases
    for picture in pictures:
        scheme, _, encoded = (picture["src"] or "").partition(",")
        assert scheme == "data:image/svg+xml;base64"
        assert b"</svg>" in base64.b64decode(encoded)
        assert picture["alt"]


def test_every_string_is_escaped(evaluation: Evaluation) -> None:
    """Markup in any name is shown as text and never becomes an element."""
    evil = "<script>alert('x')</script>\"><b>"
    record = evaluation.measurement.cases[0].model_copy(update={"case": evil, "person": evil})
    measurement = evaluation.measurement.model_copy(
        update={"cases": [record], "platform": evil, "class_scores": {evil: evaluation.measurement.scores}}
    )
    population = evaluation.population.model_copy(
        update=dict.fromkeys(["dataset", "citation", "licence", "modality", "anatomy"], evil)
    )
    one = record.model_copy(update={key: getattr(record, key)[:2] for key in ("count", "sum_p", "sum_y", "ace_floor")})
    one = one.model_copy(update={"intersection": record.intersection[:2], "predicted": record.predicted[:2]})
    html = report_html(
        dataclasses.replace(
            evaluation,
            measurement=measurement.model_copy(update={"cases": [one]}),
            structures=[evil],
            surfaces={evil: [SurfaceScores(1.0, 1.0)]},
            model=evil,
            version=evil,
            identity=evil,
            population=population,
            split=evil,
            conventions=evil,
        )
    )

    page = Page(html)
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.words.count(evil) >= 14


def test_training_cases_are_marked(evaluation: Evaluation) -> None:
    """A split that the recipe trains on is marked as too good; an unknown voxel size is stated."""
    words = Page(report_html(dataclasses.replace(evaluation, trained_on=True))).words
    assert "better than those on new patients" in words
    assert "does not train" not in words

    unknown = dataclasses.replace(evaluation, surfaces=None, nsd_tolerance_mm=None)
    words = Page(report_html(unknown)).words
    assert "do not tell the true voxel size" in words
    assert "better than those on new patients" not in words


def test_worst_and_best_cases_are_found_once_each() -> None:
    """The three lowest and highest of nine cases by DSC and by ACE are shown, each once, worst first."""
    rows = [row(f"case {i}", "whole", dsc=i / 10, ace=i / 100) for i in range(1, 10)]
    rows[4] = row("case 5", "whole", dsc=0.5, ace=0.5)

    reasons = {extreme.case: extreme.reasons for extreme in extremes(rows)}

    assert reasons == {
        "case 1": ["lowest DSC", "lowest ACE"],
        "case 2": ["lowest DSC", "lowest ACE"],
        "case 3": ["lowest DSC", "lowest ACE"],
        "case 9": ["highest DSC", "highest ACE"],
        "case 8": ["highest DSC", "highest ACE"],
        "case 5": ["highest ACE"],
        "case 7": ["highest DSC"],
    }
    assert [extreme.case for extreme in extremes(rows)][-1] == "case 7"


def test_no_case_is_both_worst_and_best() -> None:
    """Cases rank by the mean of their defined structures; a case without any is not ranked."""
    rows = [
        row("a", "front", 0.9, 0.1),
        row("a", "back", math.nan, math.nan),
        row("b", "front", 0.9, 0.1),
        row("b", "back", 0.5, 0.3),
        row("c", "front", math.nan, math.nan),
    ]

    assert {extreme.case: extreme.reasons for extreme in extremes(rows)} == {
        "b": ["lowest DSC", "highest ACE"],
        "a": ["highest DSC", "lowest ACE"],
    }


def test_a_figure_is_the_mean_over_cases_that_have_it() -> None:
    """The mean of 1, 3 and undefined is 2, its interval 1 to 3; without any value it is null."""
    weights = np.array([[1, 1, 1], *[[2, 0, 1]] * 50, *[[0, 2, 1]] * 50])

    mean = over_persons(np.array([1.0, 3.0, np.nan]), weights)

    assert (mean.value, mean.low, mean.high) == (2.0, 1.0, 3.0)
    assert over_persons(np.full(3, np.nan), weights).value is None


def test_the_file_is_written(evaluation: Evaluation, tmp_path: Path) -> None:
    """The file holds the page, in UTF-8, and the same evaluation gives the same bytes."""
    file = write_report(tmp_path / "report.html", evaluation)

    assert file.read_text("utf-8") == report_html(evaluation)
