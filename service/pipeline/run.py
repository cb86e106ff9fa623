"""Run one case from file to result, one line per stage.

The service, the batch and the command line all call it; it knows no HTTP, no jobs and no settings.
"""

import datetime as dt
import math
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch

from service.bundle.acceptance import AS_STATED, Admission, judge_words
from service.bundle.card import CPU, Measurement
from service.bundle.engine_kind import REFERENCE
from service.bundle.reader import LoadedBundle
from service.bundle.schema import ServiceConfig
from service.bundle.statement import Unmeasured, statement_of
from service.engines.machine import device_kind, synchronise, to_host
from service.errors import BundleUnsupported, EngineDisagrees
from service.intake.sandbox import decode_sandboxed
from service.pipeline.centre import Placement, place
from service.pipeline.compare import compare
from service.pipeline.grid import Grid, frame_of
from service.pipeline.infer import infer_within_memory
from service.pipeline.locate import locate, shows_more
from service.pipeline.memory import ComputedOn, within_memory
from service.pipeline.predict import Segmentation, segment, without_padding
from service.pipeline.preprocess import needs_tissue, preprocess
from service.pipeline.summary import findings_about, sizes_of, summarise
from service.pipeline.tissue import Tissue, tissue_of
from service.result.files import LOGITS
from service.result.logits import encode_logits
from service.result.outputs import FinishedCase, encode_files
from service.result.store import Store, complete
from service.schemas import CaseResult, Output, Report, Stage
from service.volume import Volume

_ON_DEVICE: Final[tuple[Stage, ...]] = ("locate", "infer", "calibrate")
"""Stages that use the device: at the end of each it is waited for, once, or the next stage would be given its time."""

_T = TypeVar("_T")


def run_case(  # noqa: PLR0913 - what, by what, where to, and for whom
    scan: Path,
    bundle: LoadedBundle,
    out: Path,
    report: Report,
    outputs: Collection[Output] = get_args(Output),
    *,
    device: str | None = None,
    admission: Admission = AS_STATED,
) -> CaseResult:
    """Segment a scan and write the files of its result and, last, `result.json`.

    The frame and the headers of a DICOM series are always written; mask, confidence, summary and, for probabilities,
    the logits only if they are among the outputs.

    Args:
        scan: file of any format that `decode_scan` reads.
        bundle: ready to run.
        out: folder for the files.
        report: called with each stage and the fraction done.
        outputs: which files are kept; all by default.
        device: name of the bundle's device in the result, e.g. its UUID; by default torch's name.
        admission: what the caller says about the scan.

    Raises:
        ScanError: the scan cannot be segmented, or says itself that the bundle does not accept it.
        BundleUnsupported: the card does not cover the engine that would run.
    """
    watch = _Stopwatch(report, bundle.device)
    device = device or str(bundle.device)
    description, config = bundle.description, bundle.description.config
    measurement = covering_measurement(bundle)

    volume = watch.stage("decode", lambda: decode_sandboxed(scan))
    judgement = judge_words(description.card.accepted, admission.with_stated(volume.stated))
    judgement.reject(admission)
    placement = None
    if config.locator is not None and shows_more(volume, config.locator):
        placement = watch.stage("locate", lambda: locate_parts(bundle, volume))
    images, grid, tissue = watch.stage("preprocess", lambda: _inputs(volume, placement, config))
    inferred = watch.stage("infer", lambda: _infer_each(bundle, images, report, keep="probabilities" in outputs))
    if inferred.bundle is not bundle:  # another engine, which was measured by itself
        bundle, device = inferred.bundle, str(inferred.bundle.device)
        measurement = covering_measurement(bundle)
    config = config.located if placement else config
    with Store(out) as store:
        if inferred.kept is not None:  # by far the largest file: compressed while the rest is computed
            store.begin(LOGITS, encode_logits(inferred.kept if placement else inferred.kept[0]))
        (segmentation, computed_on), shift = watch.stage(
            "calibrate",
            lambda: (
                _segment(inferred, grid, config),
                compare(description, images, inferred.logits, located=placement is not None),
            ),
        )
        segmentation = without_padding(segmentation, volume.padding, config.labels[0].value)
        findings = findings_about(
            description.card,
            sizes_of(volume, grid, placement, tissue),
            judgement,
            shift,
            volume.doubts,
            located=placement is not None,
        )
        statement = statement_of(description.card, measurement, findings)
        case = FinishedCase(
            volume,
            segmentation.mask,
            segmentation.confidence,
            frame_of(volume, grid, config),
            lambda: summarise(segmentation, volume, description, statement, placement, tissue),
        )
        files = watch.stage("encode", lambda: encode_files(case, outputs))
        hashes = watch.stage("store", lambda: store.finish(files))

    return complete(out, _result_of(bundle, device, computed_on, watch.seconds, hashes))


def locate_parts(bundle: LoadedBundle, volume: Volume) -> Placement:
    """Locate the parts of the bundle's anatomy in a scan that shows more.

    Raises:
        AnatomyNotFound: no part was found.
        ValueError: the bundle has no locator.
    """
    placement, _ = within_memory(
        bundle.device,
        [("device", lambda: _located_by(bundle, volume)), ("CPU", lambda: _located_by(bundle.on_cpu(), volume))],
    )
    return placement


def _located_by(bundle: LoadedBundle, volume: Volume) -> Placement:
    config = bundle.description.config
    if bundle.locator is None or config.locator is None:
        msg = f"{config.name} has no locator"
        raise ValueError(msg)
    return place(bundle.network, volume, locate(bundle.locator, volume, config.locator), config)


def _inputs(
    volume: Volume, placement: Placement | None, config: ServiceConfig
) -> tuple[list[torch.Tensor], Grid, Tissue | None]:
    """Return the network's inputs, the grid that leads back, and the tissue, where a step needs it.

    There is one input for a scan that is segmented whole, and otherwise one for each located part.
    """
    if placement is None:
        tissue = tissue_of(volume) if needs_tissue(config) else None
        image, grid = preprocess(volume, config, tissue)
        return [image], grid, tissue
    return [preprocess(part.volume, config)[0] for part in placement.placed], placement.grid(volume, config), None


class _Inferred(NamedTuple):
    """The logits of a case.

    Args:
        logits: (images, C, D, H, W) float16, where they were summed.
        kept: the same in the CPU's memory, if they are to be stored.
        computed_on: where.
        bundle: whose network computed them.
    """

    logits: torch.Tensor
    kept: npt.NDArray[np.float16] | None
    computed_on: ComputedOn
    bundle: LoadedBundle


def _infer_each(bundle: LoadedBundle, images: list[torch.Tensor], report: Report, *, keep: bool) -> _Inferred:
    """Infer images of equal shape, one for the scan or one for each located part.

    Raises:
        EngineDisagrees: values left the range of float16.
    """

    def progress(done: float) -> None:
        report("infer", done)

    config, on_cpu = bundle.description.config, cache(bundle.on_cpu)
    logits, computed_on = infer_within_memory(bundle.network, images, config, lambda: on_cpu().network, progress)
    if bundle.engine_kind.precision == "fp16" and not all(math.isfinite(extreme) for extreme in logits.aminmax()):
        msg = "The network's values left the range of float16 for this scan. Set CALIBRANT_ENGINE to torch-fp32."
        raise EngineDisagrees(msg)
    kept = to_host(logits).numpy() if keep else None
    return _Inferred(logits, kept, computed_on, on_cpu() if computed_on == "CPU" else bundle)


def _segment(inferred: _Inferred, grid: Grid, config: ServiceConfig) -> tuple[Segmentation, ComputedOn]:
    """Return mask and confidence, and where the case was computed, now that all of it was."""
    logits = inferred.logits if grid.parts else inferred.logits[0]
    segmentation, computed_on = within_memory(
        logits.device,
        [
            ("device", lambda: segment(logits, grid, config)),
            ("device, sums on the CPU", lambda: segment(logits.cpu(), grid, config)),
        ],
    )
    return segmentation, computed_on if inferred.computed_on == "device" else inferred.computed_on


def covering_measurement(bundle: LoadedBundle) -> Measurement | Unmeasured:
    """Return the measurement of the engine that runs the bundle: made on this machine, or the card's.

    A kind of GPU on which nothing was measured runs the reference, which was compared with the CPU when it was loaded:
    it gives mask and confidence, and no statement.

    Raises:
        BundleUnsupported: this engine was never measured at this precision, so its results would have no statement.
    """
    kind = device_kind(bundle.device)
    measurement = bundle.measurement or bundle.description.card.measurement(*bundle.engine_kind, kind)
    if measurement is None and bundle.engine_kind == REFERENCE and kind != CPU:
        return Unmeasured(*REFERENCE, kind)
    if measurement is None:
        msg = f"The calibration card has no measurement of {bundle.engine_kind.engine} at {bundle.engine_kind.precision}, the engine of this service."
        raise BundleUnsupported(msg)
    return measurement


def _result_of(
    bundle: LoadedBundle, device: str, computed_on: ComputedOn, seconds: dict[Stage, float], hashes: dict[str, str]
) -> CaseResult:
    description = bundle.description
    return CaseResult(
        model=description.identity,
        device=device,
        placement=computed_on,
        engine=bundle.engine_kind.engine,
        precision=bundle.engine_kind.precision,
        seconds=seconds,
        files=hashes,
        weights_sha256=description.card.weights_sha256,
        card_sha256=description.card_sha256,
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )


class _Stopwatch:
    """Reports each stage and records its duration in seconds, of which a GPU's are a part."""

    def __init__(self, report: Report, device: torch.device) -> None:
        self.seconds: dict[Stage, float] = {}
        self._report, self._device = report, device

    def stage(self, name: Stage, work: Callable[[], _T]) -> _T:
        self._report(name, 0.0)
        started = time.monotonic()
        result = work()
        if name in _ON_DEVICE:
            synchronise(self._device)
        self.seconds[name] = round(time.monotonic() - started, 4)
        return result
