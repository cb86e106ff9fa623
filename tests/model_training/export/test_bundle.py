import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.data.layouts.msd import read_msd
from model_training.evaluation import evaluate
from model_training.evaluation.evaluate import differences, measure
from model_training.export import bundle as module
from model_training.export.bundle import export
from service.bundle.card import Locating, Measurement
from service.bundle.description import describe_bundle
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.network import build_network
from service.bundle.reader import load_bundle
from service.bundle.schema import Locator, ServiceConfig
from service.engines import ready
from service.errors import BundleInvalid, EngineDisagrees
from service.pipeline.run import run_case


def quiet(_: Case) -> None:
    """Ignore the progress."""


@pytest.fixture
def bundle(recipe: Recipe, trained: Path, tiny_msd: Path, tmp_path: Path) -> Path:
    """Return the folder of an exported bundle."""
    export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet)
    return tmp_path / "bundle"


def test_the_bundle_holds_what_the_contract_lists(bundle: Path) -> None:
    """The bundle holds every file that docs/bundle.md lists, and no other."""
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE",
        "MANIFEST.json",
        "calibration.json",
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.safetensors",
        "service.json",
    }


def test_the_card_is_measured_on_persons_that_training_never_saw(bundle: Path, recipe: Recipe, tiny_msd: Path) -> None:
    """The card is measured on the validation split, its scores can be recomputed, and its features are those of its cases."""
    loaded = load_bundle(bundle, torch.device("cpu"))
    card = loaded.description.card
    (measurement,) = card.measurements
    assert [case.case for case in measurement.cases] == ["c1"]
    assert (card.population.n_cases, card.population.n_persons) == (1, 1)
    cases = read_msd(tiny_msd, str)["fold2"]
    assert differences(measure(loaded.network, recipe.service, cases, quiet), measurement) == {}
    assert {r.feature: r.values for r in card.shift_references} == {
        "extent_mm_1": [10.0],
        "extent_mm_2": [9.0],
        "extent_mm_3": [8.0],
        "spacing_mm_1": [1.0],
        "spacing_mm_2": [1.0],
        "spacing_mm_3": [1.0],
    }


def test_each_further_engine_is_measured(
    recipe: Recipe, trained: Path, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card lists the reference engine first, then each further engine on the same cases; one that fails its check is left out."""
    broken = EngineKind("openvino", "bf16")
    run_by = ready.run_by

    def some_break(engine_kind: EngineKind, network: nn.Module, config: ServiceConfig) -> nn.Module:
        if engine_kind == broken:
            msg = "no"
            raise EngineDisagrees(msg)
        return run_by(engine_kind, network, config)

    monkeypatch.setattr(module, "run_by", some_break)

    export(
        recipe,
        tiny_msd,
        trained,
        tmp_path / "bundle",
        quiet,
        engine_kinds=[broken, EngineKind("torch", "bf16"), REFERENCE],
    )

    measurements = load_bundle(tmp_path / "bundle", torch.device("cpu")).description.card.measurements
    assert [(measurement.engine, measurement.precision) for measurement in measurements] == [
        ("torch", "fp32"),
        ("torch", "bf16"),
    ]
    assert [[case.case for case in measurement.cases] for measurement in measurements] == [["c1"], ["c1"]]
    assert measurements[0].cases != measurements[1].cases


def test_engines_of_a_gpu_are_measured_beside_the_cpus(
    recipe: Recipe, trained: Path, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference, too, is measured there; a card that names a device says schema 1.1 and follows its committed schema."""
    devices = iter(["cpu", "cuda-9.0", "cpu"])  # the last one reads the bundle back

    def measured(*arguments: Any, **named: Any) -> Measurement:  # noqa: ANN401 - those of `measure`
        return measure(*arguments, **named).model_copy(update={"device": next(devices)})

    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "available", lambda _device: [REFERENCE])

    export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet, gpu=torch.device("cpu"))

    card = describe_bundle(tmp_path / "bundle").card
    schemas = Path(__file__).parents[3] / "service" / "bundle" / "schemas"
    schema = json.loads((schemas / "calibration-card-1.1.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "bundle" / "calibration.json").read_text()), schema)
    assert card.schema_version == "1.1"
    assert [(each.engine, each.precision, each.device) for each in card.measurements] == [
        ("torch", "fp32", "cpu"),
        ("torch", "fp32", "cuda-9.0"),
    ]


def test_card_and_configuration_follow_the_committed_schemas(bundle: Path) -> None:
    """An independent validator accepts both JSON files by the frozen JSON schemas."""
    import json

    schemas = Path(__file__).parents[3] / "service" / "bundle" / "schemas"
    for file, schema in {"calibration.json": "calibration-card-1.1.json", "service.json": "service-1.0.json"}.items():
        jsonschema.validate(json.loads((bundle / file).read_text()), json.loads((schemas / schema).read_text()))


def test_an_existing_folder_is_never_overwritten(bundle: Path, recipe: Recipe, trained: Path, tiny_msd: Path) -> None:
    """Exporting over a bundle is refused and leaves the bundle unchanged."""
    before = (bundle / "MANIFEST.json").read_bytes()
    with pytest.raises(BundleInvalid, match="immutable"):
        export(recipe, tiny_msd, trained, bundle, quiet)
    assert (bundle / "MANIFEST.json").read_bytes() == before


def test_a_bundle_that_computes_something_else_is_refused(
    recipe: Recipe, trained: Path, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the bundle, read back, computes another sum for a case, export fails and leaves nothing behind."""
    honest, calls = evaluate.measure, []

    def forgetful(*arguments: object) -> Measurement:
        measurement = honest(*arguments)  # type: ignore[arg-type]
        calls.append(arguments)
        cases = [case.model_copy(update={"brier": float(len(calls))}) for case in measurement.cases]
        return measurement.model_copy(update={"cases": cases})

    monkeypatch.setattr(module, "measure", forgetful)
    with pytest.raises(BundleInvalid, match="something else"):
        export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet)
    assert list(tmp_path.glob("*bundle*")) == []


def test_monai_runs_it_to_the_same_mask(bundle: Path, tiny_msd: Path, tmp_path: Path) -> None:
    """`python -m monai.bundle run`, which shares none of our pipeline, gives our mask voxel by voxel."""
    scan = tiny_msd / "imagesTr" / "d1.nii.gz"
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--scan", str(scan)]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--output_dir", str(tmp_path / "monai")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (theirs,) = (tmp_path / "monai").rglob("*.nii.gz")

    (tmp_path / "ours").mkdir()
    run_case(scan, load_bundle(bundle, torch.device("cpu")), tmp_path / "ours", lambda _stage, _done: None)
    ours = nib.Nifti1Image.from_filename(tmp_path / "ours" / "mask.nii.gz")
    np.testing.assert_array_equal(nib.Nifti1Image.from_filename(theirs).get_fdata(), ours.get_fdata())


@pytest.fixture
def locator_run(tiny_locator: Locator, tmp_path: Path) -> Path:
    """Return the folder of a trained and measured locator."""
    run = tmp_path / "locator"
    run.mkdir()
    (run / "locator.json").write_text(tiny_locator.model_dump_json())
    save_file(build_network(tiny_locator.network).state_dict(), run / "locator.safetensors")
    measured = Locating(
        heads=1,
        scans=4,
        boxes_hold=3,
        distance_mm_median=1.5,
        distance_mm_p95=4.25,
        empty_scans=4,
        found_in_empty=1,
        seed=0,
    )
    (run / "locating.json").write_text(measured.model_dump_json())
    return run


def test_a_bundle_with_a_locator_says_how_well_it_does(
    recipe: Recipe, trained: Path, tiny_msd: Path, locator_run: Path, tiny_locator: Locator, tmp_path: Path
) -> None:
    """The bundle holds weights, declaration and measurement of the locator, and the model card repeats the measurement in words."""
    export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet, locator_run)
    loaded = load_bundle(tmp_path / "bundle", torch.device("cpu"))
    assert loaded.locator is not None
    assert loaded.description.config.locator == tiny_locator
    located = loaded.description.card.locating
    assert located is not None
    assert (located.boxes_hold, located.validated_on_experts) == (3, False)
    text = " ".join((tmp_path / "bundle" / "docs" / "README.md").read_text().split())
    assert "Locating** in a larger scan was not validated against expert labels" in text
    assert (
        "3 had boxes that hold 99 % of every structure; a box lies 1.5 mm off its middle (median; 95 % within 4.2 mm). In 1 of 4 scans"
        in text
    )


def test_a_locator_that_was_not_measured_is_not_exported(
    recipe: Recipe, trained: Path, tiny_msd: Path, locator_run: Path, tmp_path: Path
) -> None:
    """The message names the command that measures; no bundle is written."""
    (locator_run / "locating.json").unlink()
    with pytest.raises(BundleInvalid, match="calibrant measure-locator"):
        export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet, locator_run)
    assert not (tmp_path / "bundle").exists()
