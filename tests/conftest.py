"""Shared by all tests: a tiny bundle, a tiny data set, and the location of the real data."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

from service.bundle.card import CalibrationCard, CaseRecord, Measurement, Population
from service.bundle.manifest import sha256_of, write_manifest
from service.bundle.schema import Label, Landmark, Locator, Network, Part, ServiceConfig, ZScore
from service.calibration.cohort import CaseSums
from service.calibration.histogram import ReliabilityHistogram

if TYPE_CHECKING:
    import torch

# Tiny networks run faster on one thread: 2 s instead of 16 s for test_train.py on a busy machine.
# It must be set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline, because a loaded machine is no failure; the number of examples is limited instead.
settings.register_profile("calibrant", deadline=None, max_examples=40)
settings.load_profile("calibrant")


SLOW = (
    "architecture/test_gpu_day.py",
    "architecture/test_results.py",
    "e2e",
    "library/test_calibrant.py",
    "library/test_docs.py",
    "model_training/comparison",
    "model_training/evaluation",
    "model_training/export",
    "model_training/locator",
    "model_training/recipes",
    "model_training/test_cli.py",
    "model_training/training",
    "service/bundle/test_figures.py",
    "service/commands/batch/test_segmenter.py",
    "service/commands/test_mercure.py",
    "service/commands/test_serve.py",
    "service/engines/test_openvino_ir.py",
    "service/executors",
    "service/intake/test_sandbox.py",
    "service/jobs",
    "service/pacs/test_dimse.py",
    "service/pacs/test_receiver.py",
)
"""Folders and files below tests/: whole programs, training, pictures of many cases, other processes."""

SLOW_FIXTURES = {"guarded", "http", "labelling", "locator_run", "running_orthanc", "server", "trained", "two_steps"}
"""They start a server or train a network; so do tests that need real scans."""

REAL_SCANS = {"acdc", "brain_label_maps", "chaos", "hippocampus", "real_hippocampus", "real_series", "whole_head"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let tests marked `gpu` be rehearsed on another device."""
    parser.addoption("--gpu-device", help="torch device of tests marked gpu, e.g. cpu to rehearse them")


@pytest.fixture(scope="session")
def gpu_device(request: pytest.FixtureRequest) -> "torch.device":
    """Return the device of tests marked `gpu`: that of `--gpu-device`, else the first CUDA device; without one, skip."""
    import torch

    name = request.config.getoption("--gpu-device")
    if name is None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name or "cuda:0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `make test-fast` leaves out; single tests and files mark themselves."""
    paths = [Path(__file__).parent / path for path in SLOW]
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        if used & (SLOW_FIXTURES | REAL_SCANS) or any(item.path.is_relative_to(path) for path in paths):
            item.add_marker("slow")


@pytest.fixture
def tiny_config() -> ServiceConfig:
    """Return the configuration of a network that runs in milliseconds: two structures, windows of 8 x 8 x 8 voxels."""
    return ServiceConfig(
        name="tiny",
        version="0.0.1",
        description="A tiny network for tests.",
        modality="MR",
        anatomy="two boxes",
        channels=["T1"],
        network=Network(
            name="UNet",
            arguments={"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]},
        ),
        spacing_mm=(1.0, 1.0, 1.0),
        intensity=[ZScore()],
        patch_size=(8, 8, 8),
        labels=[
            Label(value=0, name="background", color=(0, 0, 0)),
            Label(value=1, name="front", color=(230, 159, 0)),
            Label(value=2, name="back", color=(86, 180, 233)),
        ],
        temperature=[1.0, 1.0, 1.0],
    )


@pytest.fixture
def tiny_locator() -> Locator:
    """Return a locator of two parts for the tiny bundle."""
    names = ("left", "right", "above", "below")
    return Locator(
        anatomy="boxes",
        extent_mm=(40, 40, 40),
        network=Network(
            name="UNet",
            arguments={"spatial_dims": 3, "in_channels": 1, "out_channels": 5, "channels": [4, 8], "strides": [2]},
        ),
        spacing_mm=4,
        landmarks=[
            Landmark(name=name, centre_mm=(n, n, n), usual_ml=0.5, volume_ml=(0.1, 1)) for n, name in enumerate(names)
        ],
        least_landmarks=4,
        residual_mm=5,
        scale=(0.8, 1.2),
        parts=[
            Part(
                name=name,
                landmark=name,
                search_mm=(12, 12, 12),
                size_mm=(8, 8, 8),
                labels=[Label(value=10 * n + v, name=f"{name} {v}", color=(v, n, 0)) for v in (1, 2)],
            )
            for n, name in enumerate(names[:2], start=1)
        ],
    )


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_config: ServiceConfig) -> Path:
    """Return the folder of a valid bundle, new for each test, which may change it."""
    import torch
    from safetensors.torch import save_file

    from service.bundle.network import build_network

    root = tmp_path / "bundles" / tiny_config.name
    (root / "models").mkdir(parents=True)
    torch.manual_seed(0)
    save_file(build_network(tiny_config.network).state_dict(), root / "models" / "model.safetensors")
    (root / "service.json").write_text(tiny_config.model_dump_json())
    (root / "LICENSE").write_text("No rights reserved.\n")
    (root / "calibration.json").write_text(_card(tiny_config).model_dump_json())
    _reseal(root)
    return root


@pytest.fixture
def reseal() -> Callable[[Path], str]:
    """Return the function that updates the hashes in card and manifest of a changed bundle."""
    return _reseal


@pytest.fixture
def tiny_msd(tmp_path: Path) -> Path:
    """Return a data set in the layout of the Medical Segmentation Decathlon, with splits by person.

    fold1 holds a1 and a2 (person A) and b1 (person B), fold2 holds c1 (person C), test holds d1 (person D).
    """
    root = tmp_path / "msd"
    persons = {"A": ["a1", "a2"], "B": ["b1"], "C": ["c1"], "D": ["d1"]}
    folds = [["a1", "a2", "b1"], ["c1"]]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "persons.json").write_text(json.dumps(persons))
    (root / "splits.json").write_text(json.dumps({"unit": "person", "folds": folds, "test": ["d1"]}))
    for seed, name in enumerate(["a1", "a2", "b1", "c1", "d1"]):
        label = np.zeros((10, 9, 8), np.uint8)
        label[2:5, 2:7, 2:6] = 1
        label[5:8, 2:7, 2:6] = 2
        noise = np.random.default_rng(seed).normal(scale=10, size=label.shape)
        _write_nifti(root / "imagesTr" / f"{name}.nii.gz", (100.0 * label + noise).astype(np.float32))
        _write_nifti(root / "labelsTr" / f"{name}.nii.gz", label)
    return root


@pytest.fixture
def write_nifti() -> Callable[..., None]:
    """Return the function that writes an array to a NIfTI file, with an affine or voxels of 1 mm."""
    return _write_nifti


@pytest.fixture
def chaos() -> Path:
    """Return the folder of a real CT series of 78 files; without it tests are skipped, or fail in continuous integration."""
    return _real_data("chaos_ct_dicom") / "DICOM_anon"


@pytest.fixture(scope="session")
def hippocampus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the hippocampus data; if absent, of drawn scans like it, but never in continuous integration."""
    root = _data_root() / "Task04_Hippocampus"
    if root.is_dir() or os.environ.get("CI"):
        return _real_data("Task04_Hippocampus")
    from tests.drawn_scans import draw_hippocampus

    return draw_hippocampus(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def real_hippocampus() -> Path:
    """Return the folder of the real hippocampus data; without it tests are skipped, or fail in continuous integration."""
    return _real_data("Task04_Hippocampus")


@pytest.fixture(scope="session")
def spinal_cord() -> Path:
    """Return the folder of real spinal cord volumes; without it tests are skipped, or fail in continuous integration."""
    return _real_data("sct_testing")


@pytest.fixture(scope="session")
def dcmqi_ct() -> Path:
    """Return the folder of a real CT with NRRD labels; without it tests are skipped, or fail in continuous integration."""
    return _real_data("dcmqi_ct")


@pytest.fixture
def acdc() -> Path:
    """Return the folder of the real ACDC data; without it tests are skipped, or fail in continuous integration."""
    return _real_data("ACDC")


@pytest.fixture
def whole_head() -> Path:
    """Return the folder of the real whole-head scans; without it tests are skipped, or fail in continuous integration."""
    return _real_data("whole_head")


@pytest.fixture
def brain_label_maps() -> Path:
    """Return the folder of the label maps of heads; without it tests are skipped, or fail in continuous integration."""
    return _real_data("brain_label_maps")


def _data_root() -> Path:
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("CALIBRANT_DATA", default))


def _real_data(name: str) -> Path:
    root = _data_root() / name
    if not root.is_dir():
        msg = f"{root} is absent: set CALIBRANT_DATA to the folder that holds {name}"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    return root


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    nib.save(image, path)


def _reseal(root: Path) -> str:
    card = json.loads((root / "calibration.json").read_bytes())
    card["weights_sha256"] = sha256_of(root / "models" / "model.safetensors")
    card["config_sha256"] = sha256_of(root / "service.json")
    (root / "calibration.json").write_text(json.dumps(card))
    return write_manifest(root)


def _card(config: ServiceConfig) -> CalibrationCard:
    records = [CaseRecord.of(_sums(person), (2, 5, 10), (1.0, 1.0, 1.0)) for person in ("A", "B")]
    structures = [label.name for label in config.labels[1:]]
    return CalibrationCard.model_validate(
        {
            "model": config.name,
            "model_version": config.version,
            "date": "2026-01-31",
            "weights_sha256": "0" * 64,
            "config_sha256": "0" * 64,
            "population": Population(
                dataset="two boxes",
                citation="nobody, 2026",
                licence="CC0",
                modality="MR",
                anatomy="two boxes",
                protocol="held-out",
                split="all",
                n_persons=2,
                n_cases=2,
            ),
            "measurements": [Measurement.of("torch", "fp32", "test", records, structures)],
        }
    )


def _sums(person: str) -> CaseSums:
    """Return the sums of 100 voxels: 60 background, 20 of each structure, all predicted with 0.75."""
    count, sum_y = np.zeros((3, 20), np.int64), np.zeros((3, 20), np.int64)
    for c, size in enumerate((60, 20, 20)):
        count[c, 14], count[c, 2] = size, 100 - size
        sum_y[c, 14] = size
    sum_p = (count * np.where(np.arange(20) == 14, 0.75, 0.125)).astype(np.float64)
    return CaseSums(
        case=f"case of {person}",
        person=person,
        histogram=ReliabilityHistogram(count, sum_p, sum_y),
        brier=100 * (0.25**2 + 2 * 0.125**2),
        nll=100 * float(-np.log(0.75)),
        intersection=np.array([60, 20, 20]),
        predicted=np.array([60, 20, 20]),
        floor=np.array([0.01, 0.02, 0.02]),
    )
