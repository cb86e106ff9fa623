"""One case from file to result, one line a stage. Knows no HTTP, no job and no settings: every way in calls it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from service.bundle.card import Engine, Measurement, Precision
from service.bundle.reader import LoadedBundle
from service.errors import BundleUnsupported
from service.pipeline.calibrate import segment
from service.pipeline.encode import CONFIDENCE, LOGITS, MASK, SUMMARY, encode_confidence, encode_logits, encode_mask
from service.pipeline.infer import infer_within_memory
from service.pipeline.preprocess import preprocess
from service.pipeline.sandbox import decode_sandboxed
from service.pipeline.store import complete, write_files
from service.pipeline.summary import summarise
from service.schemas import CaseResult, Report, Stage

ENGINE: Final[Engine] = "torch"
PRECISION: Final[Precision] = "fp32"

_T = TypeVar("_T")


def run_case(scan: Path, bundle: LoadedBundle, out: Path, report: Report) -> CaseResult:
    """Segment the scan and write mask, confidence, logits, summary and, last, `result.json` into the folder `out`.

    Raises:
        ScanError: the scan cannot be segmented.
        BundleUnsupported: the card does not cover the engine that would run.
    """
    watch = _Stopwatch(report)
    description, config = bundle.description, bundle.description.config
    measurement = covering_measurement(bundle)

    volume = watch.stage("decode", lambda: decode_sandboxed(scan))
    image, grid = watch.stage("preprocess", lambda: preprocess(volume, config))
    logits, placement = watch.stage(
        "infer", lambda: infer_within_memory(bundle.network, image, config, lambda done: report("infer", done))
    )
    segmentation = watch.stage("calibrate", lambda: segment(logits, grid, config))
    files = watch.stage(
        "encode",
        lambda: {
            MASK: encode_mask(segmentation.mask, volume.header),
            CONFIDENCE: encode_confidence(segmentation.confidence, volume.header, len(config.labels)),
            LOGITS: encode_logits(logits.numpy()),
            SUMMARY: summarise(segmentation, volume, grid, description, measurement).model_dump_json(indent=2).encode(),
        },
    )
    hashes = watch.stage("store", lambda: write_files(out, files))

    result = CaseResult(
        model=description.identity,
        device=str(bundle.device),
        placement=placement,
        engine=ENGINE,
        precision=PRECISION,
        seconds=watch.seconds,
        files=hashes,
    )
    complete(out, result)
    return result


def covering_measurement(bundle: LoadedBundle) -> Measurement:
    """Return the card's measurement of the engine that runs here.

    Raises:
        BundleUnsupported: nobody measured this engine at this precision, so nothing could be said about its results.
    """
    measurement = bundle.description.card.measurement(ENGINE, PRECISION)
    if measurement is None:
        msg = f"The calibration card has no measurement of {ENGINE} at {PRECISION}, the engine of this service."
        raise BundleUnsupported(msg)
    return measurement


class _Stopwatch:
    """Announces each stage and keeps its seconds."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[Stage, float] = {}
        self._report = report

    def stage(self, name: Stage, work: Callable[[], _T]) -> _T:
        self._report(name, 0.0)
        started = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - started, 4)
        return result
