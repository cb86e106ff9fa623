"""The mode `bench`: seconds of each stage, of inference beside stock MONAI's, of the losses and of training steps."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import losses
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from safetensors.torch import load_file
from subjects import phantom, phantom_recipe

from gpu_day.machine import bandwidth, described, peak_mib, products, seconds, start_peak, tensor_float_32, wait
from gpu_day.overlap import Subject, bench_overlap
from gpu_day.phantoms import crop, head, make_bundle, save, vouch
from gpu_day.report import Finding, Report
from model_training.losses.ace import ACEDiceCELoss
from model_training.recipes import RECIPES
from model_training.training.parallel import Group
from model_training.training.train import WEIGHTS, descend, train
from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.network import build_network
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.engines.machine import available, prepare
from service.engines.ready import ready_bundle, run_by
from service.pipeline.infer import infer
from service.pipeline.preprocess import preprocess
from service.pipeline.run import run_case
from service.volume import Volume

ROOT = Path(__file__).parents[2]
SW_BATCH = 4
"""Windows that stock MONAI computes at once."""


@dataclass(frozen=True, slots=True)
class _Bench:
    """Where the rows go, what computes, where files lie, and how often each case is repeated."""

    report: Report
    device: torch.device
    folder: Path
    rounds: int


def bench(report: Report, device: torch.device, *, short: bool) -> None:
    """Print what a case, a loss and a training step cost on this device."""
    prepare(device)
    small = short or device.type != "cuda"
    report.row("device", lambda: described(device))
    with tempfile.TemporaryDirectory() as folder:
        this = _Bench(report, device, Path(folder), 1 if small else 5)
        weights: list[Path] = []
        if not short:
            steps = 6 if small else 300
            report.row("training, phantom CT 48^3", lambda: _trained(device, this.folder, weights, steps=steps))
        shape = (96, 96, 40) if short else (256, 256, 50) if small else (512, 512, 100)
        report.part("CT", lambda: _bench_ct(this, weights, shape))
        report.part("shipped", lambda: _bench_shipped(this, short=short))
        if not small:
            report.part("heart", lambda: _bench_heart(this))
    report.part("losses", lambda: _bench_losses(report, device, short=short))
    for name in (
        () if short else ("hippocampus", "acdc17-small") if small else ("hippocampus", "acdc17-small", "acdc17")
    ):
        report.row(f"training step, {name}", lambda name=name: _step(name, device, rounds=1 if small else 10))  # type: ignore[misc]
    report.row("bandwidth", lambda: bandwidth(device))
    report.row("matrix product", lambda: products(device))


class _Clock:
    """Notes when each step of a training ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        del step, epoch, terms
        self.times.append(time.perf_counter())

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        del step, scores


def _trained(device: torch.device, folder: Path, weights: list[Path], *, steps: int) -> Finding:
    """Train the phantom's network, through `train` with its loader, and append the path of its weights."""
    recipe = phantom_recipe(4)
    recipe = replace(
        recipe, schedule=replace(recipe.schedule, steps=steps, warmup_steps=steps // 6, validate_every=steps)
    )
    clock = _Clock()
    train(recipe, folder / "data", folder / "run", seed=0, group=Group(0, 1, device), watchers=[clock])
    weights.append(folder / "run" / WEIGHTS)
    later = clock.times[len(clock.times) // 3 :]
    return Finding(
        f"{(len(later) - 1) / (later[-1] - later[0]):.1f} steps/s over {len(later)} of {steps} steps, drawing included"
    )


def _bench_ct(bench: _Bench, weights: list[Path], shape: tuple[int, ...]) -> None:
    """Add rows of a drawn CT: the whole case, and its inference by each engine and by stock MONAI."""
    config, device = phantom_recipe(4).service, bench.device
    description = make_bundle(config, load_file(weights[0]) if weights else None, bench.folder / "ct")
    vouch(description, device, bench.folder)
    spacing = (0.8, 0.8, 2.5)
    voxels, _ = phantom(shape, spacing, 4, 0)
    name, scan = "CT " + " x ".join(map(str, shape)), save(voxels, bench.folder / "ct.nii.gz", spacing)
    _bench_case(bench, name, description, scan)
    _bench_processes(bench, name, description, scan, cases=8)
    image, _ = preprocess(Volume(voxels[np.newaxis].astype(np.float32), np.diag([*spacing, 1.0]), b""), config)
    network = load_bundle(description.root, device).network
    grid = " x ".join(map(str, image.shape[1:]))

    def stock() -> None:
        with torch.inference_mode():
            sliding_window_inference(
                image[None].to(device), config.patch_size, SW_BATCH, network, overlap=config.overlap, mode="gaussian"
            )

    def ours(engine_kind: EngineKind) -> Finding:
        engine = run_by(engine_kind, network, config)
        return _timed(lambda: infer(engine, image, config), device, bench.rounds)

    for tf32 in (False, True) if device.type == "cuda" else (False,):
        with tensor_float_32(on=tf32):
            name = f"infer {grid}, stock {'tf32, its default' if tf32 else 'fp32'}"
            bench.report.row(name, lambda: _timed(stock, device, bench.rounds))
    for engine_kind in available(device):
        if device.type == "cuda" or engine_kind == REFERENCE:
            bench.report.row(f"infer {grid}, {engine_kind.name}", lambda kind=engine_kind: ours(kind))  # type: ignore[misc]


def _bench_shipped(bench: _Bench, *, short: bool) -> None:
    """Add rows of the shipped bundle: a head, in which it locates the hippocampus first, and a crop."""
    description = describe_bundle(SHIPPED / DEFAULT_MODEL)
    vouch(description, bench.device, bench.folder)
    whole = head(ROOT / "wheels")
    if whole is None:
        bench.report.row("a head, shipped", lambda: Finding("not measured: no template here"))
    elif not short:
        _bench_case(bench, "a head, shipped", description, whole)
        _bench_processes(bench, "a head, shipped", description, whole, cases=24)
    _bench_case(bench, "a crop, shipped", description, save(crop(), bench.folder / "crop.nii.gz"))


def _bench_heart(bench: _Bench) -> None:
    """Add a row of noise of a heart's size, for the network of acdc17 with random weights."""
    description = make_bundle(RECIPES["acdc17"].service, None, bench.folder / "heart")
    vouch(description, bench.device, bench.folder)
    noise = np.random.default_rng(0).normal(100, 20, (216, 256, 10)).astype(np.float32)
    _bench_case(
        bench, "a heart, acdc17 untrained", description, save(noise, bench.folder / "heart.nii.gz", (1.5, 1.5, 10.0))
    )


def _bench_case(bench: _Bench, name: str, description: BundleDescription, scan: Path) -> None:
    """Add a row of a whole case by the fastest engine."""

    def measure() -> Finding:
        bundle = ready_bundle(description.root, bench.device, state=bench.folder)
        _case(bundle, scan)
        start_peak(bench.device)
        results = [_case(bundle, scan) for _ in range(bench.rounds)]
        middle = sorted(results, key=lambda result: result[0])[bench.rounds // 2]
        stages = ", ".join(f"{stage} {taken:.3f}" for stage, taken in middle[1].items())
        text = f"{middle[0]:.3f} s by {bundle.engine_kind.name}: {stages}"
        if bench.device.type == "cuda":
            text += f", peak {peak_mib(bench.device):.0f} MiB, GPU busy {100 * _busy(bundle, scan):.0f} %"
        return Finding(text)

    bench.report.row(name, measure)


def _bench_processes(bench: _Bench, name: str, description: BundleDescription, scan: Path, *, cases: int) -> None:
    """Add rows of one, two and three processes on the device; on a CPU benchmarks/devices.py measures it."""
    if bench.device.type == "cuda":
        subject = Subject(name, description, scan, bench.folder)
        bench.report.part(
            "processes", lambda: bench_overlap(bench.report, subject, bench.device, cases=cases, rounds=3)
        )


def _case(bundle: LoadedBundle, scan: Path) -> tuple[float, dict[str, float]]:
    """Run a case and return its seconds as a whole and by stage."""
    with tempfile.TemporaryDirectory() as out:
        wait(bundle.device)
        started = time.perf_counter()
        result = run_case(scan, bundle, Path(out), lambda _stage, _done: None, ["mask", "confidence", "summary"])
        return time.perf_counter() - started, {str(stage): taken for stage, taken in result.seconds.items()}


def _busy(bundle: LoadedBundle, scan: Path) -> float:
    """Return the share of a case's time during which the GPU computes or copies, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        taken, _ = _case(bundle, scan)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / taken


def _timed(work: Callable[[], object], device: torch.device, rounds: int) -> Finding:
    """Return the median seconds of some work and the memory at its peak."""
    start_peak(device)
    work()
    taken = seconds(work, device, rounds)
    memory = f", peak {peak_mib(device):.0f} MiB" if device.type == "cuda" else ""
    return Finding(f"{taken:.4f} s{memory}")


def _bench_losses(report: Report, device: torch.device, *, short: bool) -> None:
    """Add rows of our losses, the authors' equations and MONAI's DiceCE: time, memory, synchronisations."""
    shapes = {"(1,2,16^3)": (1, 2, 16, 16, 16)} if short else losses.SHAPES
    for label, shape in shapes.items():
        times = losses.times_of(shape, str(device), 20 if device.type == "cuda" else 1)
        for name in losses.LOSSES:
            report.row(
                f"loss {label}, {name}",
                lambda name=name, shape=shape, times=times: _loss(name, shape, device, times[name]),  # type: ignore[misc]
            )


def _loss(name: str, shape: tuple[int, ...], device: torch.device, times: list[float]) -> Finding:
    text = f"{1000 * statistics.median(times):.2f} ms"
    if device.type == "cuda":
        waits = losses.synchronisations(losses.LOSSES[name], *losses.batch(shape, str(device)))
        text += f", peak {losses.peak_mb(name, shape, str(device)):.0f} MiB, waits {waits} times"
    return Finding(text)


def _step(name: str, device: torch.device, rounds: int) -> Finding:
    """Measure training steps of a recipe on random patches, without drawing them."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    network = build_network(recipe.service.network).to(device)
    optimiser = torch.optim.AdamW(network.parameters())
    loss_of = ACEDiceCELoss(recipe.binning, ace_weight=recipe.ace_weight or 1.0)
    shape = (recipe.schedule.batch_size, len(recipe.service.channels), *recipe.service.patch_size)
    images = torch.randn(shape).to(device)
    labels = torch.randint(len(recipe.service.labels), (shape[0], 1, *shape[2:])).float().to(device)
    start_peak(device)
    mixed = device.type == "cuda"
    taken = seconds(lambda: descend(network, optimiser, loss_of, (images, labels), mixed=mixed), device, rounds)
    memory = f", peak {peak_mib(device):.0f} MiB" if device.type == "cuda" else ""
    return Finding(f"{1 / taken:.2f} steps/s of {' x '.join(map(str, shape))}, {'bf16' if mixed else 'fp32'}{memory}")
