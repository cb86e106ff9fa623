import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import torch
from torch import nn

from service.bundle.description import describe_bundle
from service.bundle.engine_kind import EngineKind
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.schema import Window
from service.engines.torch_cast import Cast
from service.errors import BundleUnsupported, ConstantVolume, PayloadTruncated
from service.intake.decode import decode_scan
from service.pipeline.predict import segment
from service.pipeline.preprocess import preprocess
from service.pipeline.run import covering_measurement, run_case
from service.result.logits import read_logits
from service.schemas import CaseResult, Output, Stage, Summary

Nifti = Callable[..., bytes]

STAGES = ["decode", "preprocess", "infer", "calibrate", "encode", "store"]


@pytest.fixture
def bundle(tiny_bundle: Path) -> LoadedBundle:
    """Return the tiny bundle, ready to serve."""
    return load_bundle(tiny_bundle, torch.device("cpu"))


@pytest.fixture
def scan(nifti: Nifti, tmp_path: Path) -> Path:
    """Return an oblique scan of 9 x 10 x 6 voxels."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(np.random.default_rng(7).normal(100, 10, (9, 10, 6)).astype(np.float32)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the folder of the result."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def load(path: Path) -> Any:  # noqa: ANN401 - nibabel's own
    """Return the image that nibabel reads."""
    return nib.load(path)


def silent(_stage: Stage, _done: float) -> None:
    """Ignore progress."""


def test_a_result_is_its_files_and_their_hashes(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """The folder holds the files of the result and `result.json`, which names the SHA-256 of each."""
    result = run_case(scan, bundle, out, silent)

    assert {path.name for path in out.iterdir()} == {
        *("mask.nii.gz", "confidence.nii.gz", "logits.npy.gz", "summary.json", "frame.json"),
        "result.json",
    }
    assert CaseResult.model_validate_json((out / "result.json").read_bytes()) == result
    assert result.files == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.name != "result.json"
    }


def test_a_result_says_how_it_was_computed(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """It names model, device, engine and precision, and the seconds of every stage in order."""
    result = run_case(scan, bundle, out, silent)

    assert result.model == bundle.description.identity
    assert (result.device, result.engine, result.precision) == ("cpu", "torch", "fp32")
    assert list(result.seconds) == STAGES
    assert all(seconds >= 0 for seconds in result.seconds.values())


def test_stages_are_announced_in_order(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """Each stage starts at 0; inference proceeds in steps to 1."""
    heard: list[tuple[Stage, float]] = []

    run_case(scan, bundle, out, lambda stage, done: heard.append((stage, done)))

    assert [stage for stage, done in heard if done == 0] == STAGES
    inside = [done for stage, done in heard if stage == "infer"]
    assert inside == sorted(inside)
    assert inside[-1] == 1


def test_result_json_is_written_last(
    scan: Path, bundle: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is written, all files that it names are complete."""
    there: list[set[str]] = []

    def watch(folder: Path, _result: CaseResult) -> None:
        there.append({path.name for path in folder.iterdir()})

    monkeypatch.setattr("service.pipeline.run.complete", watch)
    run_case(scan, bundle, out, silent)

    assert there == [{"mask.nii.gz", "confidence.nii.gz", "logits.npy.gz", "summary.json", "frame.json"}]


def test_mask_and_confidence_follow_from_the_stored_logits(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """Recomputed from the stored logits, the mask is the same and the confidence agrees within 1/255."""
    run_case(scan, bundle, out, silent)
    config = bundle.description.config

    logits = read_logits(out)
    _, grid = preprocess(decode_scan(scan), config)
    again = segment(torch.from_numpy(logits), grid, config)

    assert logits.dtype == np.float16
    assert np.array_equal(load(out / "mask.nii.gz").get_fdata(), again.mask)
    np.testing.assert_allclose(load(out / "confidence.nii.gz").get_fdata(), again.confidence, rtol=0, atol=1 / 255)


def test_the_summary_is_stored(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """`summary.json` is the wire type and describes the mask beside it."""
    run_case(scan, bundle, out, silent)

    summary = Summary.model_validate_json((out / "summary.json").read_bytes())
    mask = load(out / "mask.nii.gz").get_fdata()
    assert [structure.voxels for structure in summary.structures] == [(mask == 1).sum(), (mask == 2).sum()]


def test_the_same_case_gives_the_same_files(scan: Path, bundle: LoadedBundle, out: Path, tmp_path: Path) -> None:
    """Two runs give the same files."""
    (tmp_path / "again").mkdir()

    first, second = run_case(scan, bundle, out, silent), run_case(scan, bundle, tmp_path / "again", silent)

    assert first.files == second.files


def test_a_bad_scan_writes_nothing(bundle: LoadedBundle, out: Path, nifti: Nifti, tmp_path: Path) -> None:
    """Errors of decoding and preprocessing keep their class, and the folder stays empty."""
    cut, constant = tmp_path / "cut", tmp_path / "constant"
    cut.write_bytes(nifti()[:-1])
    constant.write_bytes(nifti(np.ones((4, 5, 6), np.int16)))

    with pytest.raises(PayloadTruncated):
        run_case(cut, bundle, out, silent)
    with pytest.raises(ConstantVolume):
        run_case(constant, bundle, out, silent)

    assert list(out.iterdir()) == []


def test_a_card_without_this_engine_is_refused(
    scan: Path, tiny_bundle: Path, out: Path, reseal: Callable[[Path], str]
) -> None:
    """If the card covers only another precision, nothing is computed."""
    card = json.loads((tiny_bundle / "calibration.json").read_bytes())
    card["measurements"][0]["precision"] = "bf16"
    (tiny_bundle / "calibration.json").write_text(json.dumps(card))
    reseal(tiny_bundle)
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))

    with pytest.raises(BundleUnsupported, match=r"^The calibration card has no measurement of torch at fp32"):
        run_case(scan, bundle, out, silent)

    assert list(out.iterdir()) == []


def test_the_measurement_is_that_of_this_engine(tiny_bundle: Path, reseal: Callable[[Path], str]) -> None:
    """Of several measurements on the card, the one of torch at fp32 is selected at any position."""
    card = json.loads((tiny_bundle / "calibration.json").read_bytes())
    card["measurements"].insert(0, card["measurements"][0] | {"precision": "bf16", "platform": "another"})
    (tiny_bundle / "calibration.json").write_text(json.dumps(card))
    reseal(tiny_bundle)

    measurement = covering_measurement(load_bundle(tiny_bundle, torch.device("cpu")))

    assert measurement.device == "cpu"
    assert measurement == describe_bundle(tiny_bundle).card.measurements[1]


def test_a_result_names_the_engine_that_ran(scan: Path, bundle: LoadedBundle, out: Path) -> None:
    """Result and statement name the engine and precision, whose measurement is used."""
    measured = bundle.description.card.measurements[0].model_copy(update={"precision": "bf16"})
    network = Cast(bundle.network, torch.bfloat16, torch.contiguous_format)

    result = run_case(
        scan,
        replace(bundle, network=network, engine_kind=EngineKind("torch", "bf16"), measurement=measured),
        out,
        silent,
    )

    statement = json.loads((out / "summary.json").read_bytes())["statement"]
    assert (result.engine, result.precision) == ("torch", "bf16")
    assert (statement["engine"], statement["precision"]) == ("torch", "bf16")


@pytest.mark.parametrize(
    ("outputs", "files"),
    [
        (["mask"], {"mask.nii.gz"}),
        (["confidence", "summary"], {"confidence.nii.gz", "summary.json"}),
        (["probabilities"], {"logits.npy.gz"}),
    ],
    ids=str,
)
def test_only_requested_outputs_are_kept(
    scan: Path, bundle: LoadedBundle, out: Path, outputs: list[Output], files: set[str]
) -> None:
    """The logits are kept only for probabilities; the frame, which holds no patient data, always."""
    run_case(scan, bundle, out, silent, outputs)

    assert {path.name for path in out.iterdir()} == files | {"frame.json", "result.json"}


class Threshold(nn.Module):
    """A network that sees label 1 at an intensity of 0.6, label 2 at 1 and background at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.0, 0.6, 1.0]).view(1, 3, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return minus the squared distance of each voxel to each label's intensity."""
        return -100 * (image - self.centres) ** 2


@pytest.fixture(name="threshold")
def threshold_(bundle: LoadedBundle) -> LoadedBundle:
    """Return a bundle of this network with voxels of 1 x 1.5 x 2 mm in RAS."""
    config = bundle.description.config.model_copy(
        update={
            "spacing_mm": (1.0, 1.5, 2.0),
            "intensity": [Window(low=0, high=100)],
            "patch_size": (32, 32, 32),
            "overlap": 0.0,
        }
    )
    return LoadedBundle(replace(bundle.description, config=config), Threshold(), torch.device("cpu"))


PHANTOM = np.zeros((7, 8, 9), np.int16)
PHANTOM[1:3, 2:6, 5:8] = 60
PHANTOM[3, 2, 5] = 60
PHANTOM[4:6, 5:7, 1:3] = 100
PHANTOM[4, 5, 3] = 100
"""No rotation or reflection maps it onto itself."""

TILTED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.25) @ np.diag([1.0, 1.5, 2.0]), np.array([-30.5, 12.25, 7])
)

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3))
]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda ornt: " ".join(str(pair) for pair in ornt.tolist()))
def test_a_phantom_comes_back_on_its_side(
    orientation: npt.NDArray[np.intp], threshold: LoadedBundle, out: Path, tmp_path: Path
) -> None:
    """For all 48 axis orders and directions of an oblique scan, every voxel of the mask equals the phantom's."""
    scan = nib.Nifti1Image(PHANTOM, TILTED).as_reoriented(orientation)
    nib.save(scan, tmp_path / "phantom.nii")

    run_case(tmp_path / "phantom.nii", threshold, out, silent)

    mask: Any = load(out / "mask.nii.gz")
    labels = np.array([0, 1, 2])[np.searchsorted([0, 60, 100], np.asarray(scan.dataobj))]
    assert mask.affine.tobytes() == load(tmp_path / "phantom.nii").affine.tobytes()
    assert np.array_equal(np.asarray(mask.dataobj), labels)
    for label, intensity in ((1, 60), (2, 100)):
        actual = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) == label)).mean(axis=0)
        expected = nib.affines.apply_affine(TILTED, np.argwhere(intensity == PHANTOM)).mean(axis=0)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_real_results_lie_where_the_scans_lie(
    hippocampus: Path, acdc: Path, threshold: LoadedBundle, tmp_path: Path
) -> None:
    """For oblique, permuted and anisotropic volumes, shape, affine and corners agree in nibabel and SimpleITK."""
    paths = sorted((hippocampus.parent / "sct_testing").rglob("*.nii.gz"))
    paths = [path for path in paths if load(path).shape[2:] != (1,)][:8]
    paths += sorted(acdc.rglob("*_frame01.nii.gz"))[:4]
    axes = {"".join(nib.aff2axcodes(load(path).affine)) for path in paths}
    assert len(axes) >= 2

    for number, path in enumerate(paths):
        out = tmp_path / f"result {number}"
        out.mkdir()
        run_case(path, threshold, out, silent)
        for name in ("mask.nii.gz", "confidence.nii.gz"):
            image, scan = load(out / name), load(path)
            assert image.shape == scan.shape
            assert image.affine.tobytes() == scan.affine.tobytes()
            ours, theirs = SimpleITK.ReadImage(out / name), SimpleITK.ReadImage(path)
            corners = [[int(n - 1) * c for n, c in zip(scan.shape, bits, strict=True)] for bits in np.ndindex(2, 2, 2)]
            for corner in corners:
                assert ours.TransformIndexToPhysicalPoint(corner) == theirs.TransformIndexToPhysicalPoint(corner)
