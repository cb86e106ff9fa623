import csv
import json
from pathlib import Path

import pytest
import torch

from model_training.data.layouts.labelled import read_labelled
from model_training.evaluation.site import evaluate_site, write_site
from service.engines.ready import ready_bundle


def test_every_case_is_measured_and_a_bad_one_is_named(tiny_bundle: Path, tiny_msd: Path, tmp_path: Path) -> None:
    """Four cases have rows and figures; the label map that cannot be read is named with the reason."""
    (tiny_msd / "labelsTr" / "d1.nii.gz").write_bytes(b"nothing")
    found = read_labelled(tiny_msd)

    evaluation = evaluate_site(ready_bundle(tiny_bundle, torch.device("cpu"), "auto"), found.cases, lambda _: None)

    assert [measured.case.name for measured in evaluation.cases] == ["a1", "a2", "b1", "c1"]
    assert list(evaluation.failed) == ["d1"]
    assert "format" in evaluation.failed["d1"]
    assert (evaluation.figures["all"].n_cases, evaluation.figures["all"].n_persons) == (4, 3)
    files = write_site(tmp_path / "out", evaluation, "a test")
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["case"], row["person"]) for row in rows} == {("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C")}
    assert all(row["statement"] != "holds" and row["reasons"] for row in rows)  # the tiny card has no shift test
    assert list(json.loads(files[1].read_bytes())) == ["all"]


def test_the_shipped_model_finds_the_cards_figures_at_a_site_with_the_cards_cases(real_hippocampus: Path) -> None:
    """Cases of the card, measured as a site would, have their DSC on the card to the engine's tolerance."""
    from service.bundle.registry import DEFAULT_MODEL, SHIPPED

    bundle = ready_bundle(SHIPPED / DEFAULT_MODEL, torch.device("cpu"), "auto")
    stated = {record.case: record.sums().dsc for record in bundle.description.card.measurements[0].cases}
    cases = [case for case in read_labelled(real_hippocampus).cases if case.name in stated][:3]

    evaluation = evaluate_site(bundle, cases, lambda _: None)

    assert evaluation.failed == {}
    for found in evaluation.cases:
        scores = [structure.dsc for structure in found.measured.measured.structures]
        assert scores == pytest.approx(list(stated[found.case.name][1:]), abs=0.01)
        assert found.measured.measured.statement == "holds"
