import dataclasses
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import CalibrationErrorMetric, CalibrationReduction, DiceMetric
from safetensors.torch import load_file

from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.data.layouts.msd import read_msd
from model_training.evaluation.evaluate import CasePrediction, differences, evaluate, measure, measure_one
from service.bundle.network import build_network
from service.bundle.reader import load_bundle
from service.calibration.scores import ace
from service.pipeline.run import run_case


@pytest.fixture
def network(trained: Path, recipe: Recipe) -> torch.nn.Module:
    """Return the trained network in evaluation mode."""
    network = build_network(recipe.service.network)
    network.load_state_dict(load_file(trained / "model.safetensors"))
    return network.eval()


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_scores_agree_with_monai_on_the_mask_and_probabilities(
    network: torch.nn.Module, recipe: Recipe, tiny_msd: Path
) -> None:
    """DSC and ACE of a case equal those that MONAI computes from the network's output."""
    (case,) = read_msd(tiny_msd, str)["test"]
    (record,) = measure_one(network, recipe.service, case, [[1.0, 1.0, 1.0]])

    scan = torch.from_numpy(nib.Nifti1Image.from_filename(case.images[0]).get_fdata(dtype=np.float32))
    image = ((scan.double() - scan.double().mean()) / scan.double().std(correction=0)).float()
    labels = torch.from_numpy(np.asarray(nib.Nifti1Image.from_filename(case.label).dataobj).astype(np.int64))
    with torch.inference_mode():
        logits = sliding_window_inference(
            image[None, None], recipe.service.patch_size, 1, network, recipe.service.overlap, mode="gaussian"
        )
    assert isinstance(logits, torch.Tensor)
    probs = logits.half().float().softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0)[None].float()
    mask = torch.nn.functional.one_hot(probs.argmax(dim=1), 3).movedim(-1, 1).float()
    dice = DiceMetric(include_background=True)(mask, one_hot)
    assert isinstance(dice, torch.Tensor)
    metric = CalibrationErrorMetric(num_bins=20, calibration_reduction=CalibrationReduction.AVERAGE)
    metric(probs, one_hot)
    buffer = metric.get_buffer()
    assert isinstance(buffer, torch.Tensor)

    np.testing.assert_allclose(record.sums().dsc, dice.numpy()[0], atol=1e-6)
    np.testing.assert_allclose(ace(record.sums().histogram), buffer.numpy()[0], atol=1e-6)


def test_it_measures_what_is_served(
    trained: Path, recipe: Recipe, tiny_msd: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Evaluation counts the same voxels per class as the mask that the service writes."""
    del trained
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    (case,) = read_msd(tiny_msd, str)["test"]
    (record,) = measure_one(bundle.network, recipe.service, case, [[1.0, 1.0, 1.0]])
    (tmp_path / "out").mkdir()
    run_case(case.images[0], bundle, tmp_path / "out", lambda _stage, _done: None)
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "out" / "mask.nii.gz").dataobj)
    assert record.predicted == np.bincount(mask.ravel(), minlength=3).tolist()


def test_temperatures_change_probabilities_and_not_the_mask(
    network: torch.nn.Module, recipe: Recipe, tiny_msd: Path
) -> None:
    """Each choice of temperatures has its own record; one temperature for all classes does not change the DSC."""
    (case,) = read_msd(tiny_msd, str)["test"]

    sharp, plain, flat = measure_one(network, recipe.service, case, [[0.1] * 3, [1.0] * 3, [1e3] * 3])

    assert sharp.predicted == plain.predicted
    assert sharp.intersection == plain.intersection == flat.intersection
    assert len({sharp.nll, plain.nll, flat.nll}) == 3
    voxels = sum(plain.count[0])
    assert flat.nll == pytest.approx(voxels * np.log(3), rel=1e-2)


def test_measuring_twice_gives_the_same_measurement(network: torch.nn.Module, recipe: Recipe, tiny_msd: Path) -> None:
    """Every figure and sum repeats exactly, whatever the caller's number of threads, which is left unchanged."""
    cases = read_msd(tiny_msd, str)["fold1"]
    threads = torch.get_num_threads()
    first = measure(network, recipe.service, cases, quiet)
    torch.set_num_threads(threads + 1)
    second = measure(network, recipe.service, cases, quiet)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert differences(second, first) == {}
    assert [case.person for case in first.cases] == ["A", "A", "B"]


def test_differences_name_figures_and_cases(network: torch.nn.Module, recipe: Recipe, tiny_msd: Path) -> None:
    """A changed figure and a changed sum are both listed by name."""
    stated = measure(network, recipe.service, read_msd(tiny_msd, str)["fold2"], quiet)
    score = stated.scores["dsc"]
    figure = score.model_copy(update={"value": (score.value or 0.0) + 0.25})
    case = stated.cases[0].model_copy(update={"nll": 0.0})
    changed = stated.model_copy(update={"scores": {**stated.scores, "dsc": figure}, "cases": [case]})
    assert differences(changed, stated) == {"foreground dsc value": pytest.approx(0.25), "c1": 0.0}


def test_look_gets_each_prediction_once(network: torch.nn.Module, recipe: Recipe, tiny_msd: Path) -> None:
    """The prediction that `look` gets has the mask and reference that the record counts."""
    seen: list[CasePrediction] = []

    measurement = measure(network, recipe.service, read_msd(tiny_msd, str)["fold1"], quiet, seen.append)

    assert [prediction.case.name for prediction in seen] == [record.case for record in measurement.cases]
    for prediction, record in zip(seen, measurement.cases, strict=True):
        assert np.bincount(prediction.mask_DHW.ravel(), minlength=3).tolist() == record.predicted
        assert np.bincount(prediction.reference_DHW.ravel(), minlength=3).tolist() == np.sum(record.sum_y, 1).tolist()
        assert prediction.mask_DHW.dtype == np.uint8


def test_an_evaluation_measures_distances_with_the_spacing_of_the_scan(
    recipe: Recipe, tiny_bundle: Path, tiny_msd: Path, write_nifti: Callable[..., None]
) -> None:
    """With voxels of 1 x 1 x 3 mm a mask moved by one slice is 3 mm off; without a tolerance no distance is measured."""
    (case,) = read_msd(tiny_msd, str)["fold2"]
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    image = nib.Nifti1Image.from_filename(case.images[0]).get_fdata(dtype=np.float32)
    seen: list[CasePrediction] = []
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    write_nifti(case.images[0], image, affine)
    write_nifti(case.label, np.zeros(image.shape, np.uint8), affine)
    measure(bundle.network, recipe.service, [case], quiet, seen.append)
    moved = np.zeros_like(seen[0].mask_DHW)
    moved[:, :, 1:] = seen[0].mask_DHW[:, :, :-1]
    moved[:, :, 0] = seen[0].mask_DHW[:, :, 0]
    write_nifti(case.label, moved, affine)

    known = evaluate(bundle, dataclasses.replace(recipe, nsd_tolerance_mm=3.0), "fold2", [case], quiet)
    unknown = evaluate(bundle, dataclasses.replace(recipe, nsd_tolerance_mm=None), "fold2", [case], quiet)

    assert seen[0].spacing_mm == (1.0, 1.0, 3.0)
    scores = (known.surfaces or {})["c1"]
    assert len(scores) == 2
    distances = [score.hd95_mm for score in scores if np.isfinite(score.hd95_mm)]
    assert distances
    assert max(distances) == pytest.approx(3.0)
    assert unknown.surfaces is None
    assert (known.split, known.trained_on, known.identity) == ("fold2", False, bundle.description.identity)
    assert known.measurement == unknown.measurement


def test_a_label_on_another_grid_is_not_scored(
    recipe: Recipe, tiny_msd: Path, write_nifti: Callable[..., None]
) -> None:
    """A label of the same shape that is moved by a voxel in the patient is refused."""
    (case,) = read_msd(tiny_msd, str)["test"]
    moved = np.eye(4)
    moved[0, 3] = 1
    write_nifti(case.label, np.asarray(nib.Nifti1Image.from_filename(case.label).dataobj), moved)

    with pytest.raises(DataError, match="another grid"):
        measure(build_network(recipe.service.network).eval(), recipe.service, [case], quiet)
