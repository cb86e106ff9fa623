import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count, permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from service.bundle.description import describe_bundle
from service.bundle.engine_kind import ENGINE_KINDS, REFERENCE, EngineKind
from service.bundle.overlay import write_overlay
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.schema import Window
from service.engines.machine import available, device_kind, prepare
from service.engines.ready import ready_bundle
from service.engines.torch_cast import Cast
from service.errors import BundleUnsupported, ConstantVolume, EngineDisagrees, PayloadTruncated
from service.intake.decode import decode_scan
from service.pipeline import infer as infer_module
from service.pipeline import memory
from service.pipeline import run as run_module
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
    assert run_case(scan, bundle, out, silent, device="MIG-1").device == "MIG-1"


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


def test_a_device_is_waited_for_once_at_the_end_of_each_stage_that_used_it(
    scan: Path, bundle: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that wait the next stage would be given the device's time; more would leave the device idle."""
    happened: list[str] = []
    monkeypatch.setattr(run_module, "synchronise", lambda device: happened.append(f"wait for {device}"))

    result = run_case(scan, bundle, out, lambda stage, done: happened.append(stage) if done == 0 else None)

    waited = "wait for cpu"
    assert happened == ["decode", "preprocess", "infer", waited, "calibrate", waited, "encode", "store"]
    assert set(result.seconds) == set(STAGES)


def test_the_wait_belongs_to_the_stage(
    scan: Path, bundle: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that needs a second for the windows that it was sent makes infer a second longer, not calibrate."""
    now = [0.0]
    monkeypatch.setattr("service.pipeline.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    waits = iter([1.0, 0.25])
    monkeypatch.setattr(run_module, "synchronise", lambda _device: now.__setitem__(0, now[0] + next(waits)))

    result = run_case(scan, bundle, out, silent)

    assert (result.seconds["infer"], result.seconds["calibrate"]) == (1.0, 0.25)


@pytest.fixture(name="small_gpu")
def small_gpu_(bundle: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> LoadedBundle:
    """Return the tiny bundle as if on a GPU: the ladder of attempts is climbed down although torch has none."""
    real = memory.within_memory

    def on_a_gpu(_device: torch.device, attempts: Any) -> Any:  # noqa: ANN401 - of any stage
        return real(torch.device("cuda:0"), attempts)

    for module in (run_module, infer_module):
        monkeypatch.setattr(module, "within_memory", on_a_gpu)
    measured = bundle.description.card.measurements[0].model_copy(update={"precision": "bf16", "device": "cuda-8.0"})
    network = Cast(bundle.network, torch.bfloat16, torch.contiguous_format)
    return replace(bundle, network=network, engine_kind=EngineKind("torch", "bf16"), measurement=measured)


def failing(times: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which first finds no memory so many times."""
    calls = count()

    def work(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - those of the function
        if next(calls) < times:
            raise torch.OutOfMemoryError
        return function(*arguments, **named)

    return work


def test_a_case_that_a_gpu_cannot_hold_says_who_computed_it(
    scan: Path,
    small_gpu: LoadedBundle,
    bundle: LoadedBundle,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU it is another engine: its files are those of torch-fp32, and so are result and statement."""
    (tmp_path / "cpu").mkdir()
    expected = run_case(scan, bundle, tmp_path / "cpu", silent)
    monkeypatch.setattr(infer_module, "_half_logits", failing(3, infer_module._half_logits))

    result = run_case(scan, small_gpu, out, silent)

    assert result.placement == "CPU"
    assert (result.engine, result.precision, result.device) == ("torch", "fp32", "cpu")
    assert result.files == expected.files
    assert {parameter.dtype for parameter in small_gpu.network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("times", "placement"), [(0, "device"), (1, "device"), (2, "device, sums on the CPU")])
def test_a_gpu_with_less_memory_states_its_own_measurement(
    scan: Path, small_gpu: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch, times: int, placement: str
) -> None:
    """As long as the network runs on the GPU, the statement is that of the GPU's engine."""
    monkeypatch.setattr(infer_module, "_half_logits", failing(times, infer_module._half_logits))

    result = run_case(scan, small_gpu, out, silent)

    statement = Summary.model_validate_json((out / "summary.json").read_bytes()).statement
    assert (result.placement, result.precision) == (placement, "bf16")
    assert (statement.precision, statement.device, statement.status) == ("bf16", "cuda-8.0", "not compared")


def test_calibration_moves_to_the_cpu_if_memory_runs_out(
    scan: Path, small_gpu: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask and confidence are then computed there, and the result says so."""
    monkeypatch.setattr(run_module, "segment", failing(1, segment))

    assert run_case(scan, small_gpu, out, silent).placement == "device, sums on the CPU"


def test_stacking_parts_is_a_step_of_the_ladder(small_gpu: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory runs out when the logits of two parts are put together, both are computed with less of it."""
    images = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)]
    monkeypatch.setattr(torch, "stack", failing(2, torch.stack))

    inferred = run_module._infer_each(small_gpu, images, silent, keep=False)

    assert inferred.computed_on == "device, sums on the CPU"
    assert inferred.logits.shape == (2, 3, 8, 8, 8)


def test_locating_moves_to_the_cpu_if_memory_runs_out(small_gpu: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt has the networks of the bundle on the CPU; those of the GPU stay where they are."""
    located: list[LoadedBundle] = []

    def with_networks_of(bundle: LoadedBundle, _volume: object) -> str:
        located.append(bundle)
        if len(located) == 1:
            raise torch.OutOfMemoryError
        return "placement"

    monkeypatch.setattr(run_module, "_located_by", with_networks_of)

    placement = run_module.locate_parts(small_gpu, None)  # type: ignore[arg-type]

    assert str(placement) == "placement"
    assert located[0] is small_gpu
    assert located[1].engine_kind == REFERENCE
    assert {parameter.dtype for parameter in located[1].network.parameters()} == {torch.float32}


def test_values_beyond_float16_are_no_result(
    scan: Path, bundle: LoadedBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan may leave the range that the check's window kept; the message names the engine to choose."""
    measured = bundle.description.card.measurements[0].model_copy(update={"precision": "fp16"})
    overflowing = replace(bundle, engine_kind=EngineKind("torch", "fp16"), measurement=measured)
    real = infer_module._half_logits
    monkeypatch.setattr(infer_module, "_half_logits", lambda *arguments: real(*arguments) * torch.inf)

    with pytest.raises(EngineDisagrees, match="torch-fp32"):
        run_case(scan, overflowing, out, silent)

    assert list(out.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["torch-fp32", "torch-bf16", "torch-fp16"])
def test_a_gpu_answers_alike(
    scan: Path, tiny_bundle: Path, out: Path, tmp_path: Path, gpu_device: torch.device, engine: str
) -> None:
    """With each engine of the device mask and mean confidence are those of float32 on the CPU, and the statement is its own."""
    prepare(gpu_device)
    engine_kind = ENGINE_KINDS[engine]
    if engine_kind not in available(gpu_device):
        assert gpu_device.type == "cpu" or engine_kind.precision == "bf16"
        return
    description = describe_bundle(tiny_bundle)
    update = {"precision": engine_kind.precision, "device": device_kind(gpu_device)}
    write_overlay(tmp_path / "state", description, description.card.measurements[0].model_copy(update=update))
    (tmp_path / "cpu").mkdir()
    run_case(scan, load_bundle(tiny_bundle, torch.device("cpu")), tmp_path / "cpu", silent)

    result = run_case(scan, ready_bundle(tiny_bundle, gpu_device, engine, tmp_path / "state"), out, silent)

    masks, confidences = (
        [np.asarray(load(folder / name).dataobj) for folder in (out, tmp_path / "cpu")]
        for name in ("mask.nii.gz", "confidence.nii.gz")
    )
    statement = Summary.model_validate_json((out / "summary.json").read_bytes()).statement
    assert np.mean(masks[0] == masks[1]) > (0.999 if engine == "torch-fp32" else 0.95)
    assert np.abs(confidences[0] - confidences[1]).mean() < (2e-3 if engine == "torch-fp32" else 5e-3)
    assert (result.device, result.placement, result.engine) == (str(gpu_device), "device", "torch")
    assert (statement.precision, statement.device) == (engine_kind.precision, device_kind(gpu_device))


@pytest.mark.gpu
def test_a_gpu_that_was_never_measured_states_nothing(
    scan: Path, tiny_bundle: Path, out: Path, gpu_device: torch.device
) -> None:
    """It gives mask and confidence, and the statement's reason says what to run."""
    prepare(gpu_device)

    run_case(scan, ready_bundle(tiny_bundle, gpu_device), out, silent)

    statement = Summary.model_validate_json((out / "summary.json").read_bytes()).statement
    assert (statement.status == "withdrawn") == (gpu_device.type != "cpu")
    assert (gpu_device.type == "cpu") == (not any("verify-engine" in reason for reason in statement.reasons))


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
    import SimpleITK  # of 50 MiB: a GPU's bare machine lacks it

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
