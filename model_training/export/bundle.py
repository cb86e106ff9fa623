"""Writes the bundle of a training run with its calibration card, reads it back and checks it."""

import copy
import datetime as dt
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure
from model_training.evaluation.resolution import Spacing, measure_resolutions
from model_training.export.monai_bundle import inference_config, metadata
from model_training.locator.train import DECLARATION, LOCATING
from model_training.locator.train import WEIGHTS as LOCATOR_WEIGHTS
from model_training.training import train
from service.bundle.acceptance import MARGIN, SIZES
from service.bundle.card import CPU, CalibrationCard, CaseRecord, Locating, Measurement, ShiftReference, ShiftTestRecord
from service.bundle.description import CARD, CONFIG, LOCATOR, WEIGHTS
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.manifest import sha256_of, write_manifest
from service.bundle.network import build_network
from service.bundle.reader import load_bundle
from service.bundle.schema import Locator, ServiceConfig
from service.bundle.statement import LEAST_DSC
from service.engines.machine import available
from service.engines.ready import run_by
from service.errors import BundleInvalid, EngineDisagrees


def export(  # noqa: PLR0913 - from where, to where, and what of it
    recipe: Recipe,
    data: Path,
    run: Path,
    out: Path,
    done: Callable[[Case], None],
    locator: Path | None = None,
    *,
    engine_kinds: Sequence[EngineKind] = (REFERENCE,),
    gpu: torch.device | None = None,
    shift_tests: Sequence[ShiftTestRecord] = (),
    spacings: Sequence[Spacing] = (),
) -> str:
    """Write the bundle of a run, optionally with a locator, to the folder `out`; return its identity.

    The card is measured on the recipe's validation split, whose persons the run never saw: with the reference engine, and
    with each further engine that passes its check.

    Args:
        recipe: recipe of the run.
        data: folder of the data set.
        run: folder that `train` filled.
        out: folder of the bundle, which must not exist.
        done: called after each case.
        locator: folder of a trained and measured locator.
        engine_kinds: engines to measure on the CPU.
        gpu: every engine of it is measured, too, in a process that was prepared for it.
        shift_tests: what answers are compared with; without any, no answer's statement holds.
        spacings: further voxel sizes at which the card's cases are measured.

    Raises:
        BundleInvalid: the folder exists, the locator was not measured, or the bundle read back computes something else
            than before.
        DataError: the data set is not as the recipe expects.
    """
    if out.exists():
        msg = f"{out} exists already. A bundle is immutable: choose another folder, or remove this one first."
        raise BundleInvalid(msg)
    # Written beside its place until it is checked: a folder named `out` is always a valid bundle.
    with tempfile.TemporaryDirectory(dir=_made(out.parent), prefix=f".{out.name}.") as folder:
        draft = Path(folder) / "bundle"
        identity = _write(recipe, data, run, draft, done, locator, engine_kinds, gpu, shift_tests, spacings)
        draft.rename(out)
    return identity


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(  # noqa: PLR0913, PLR0917 - the arguments of `export`
    recipe: Recipe,
    data: Path,
    run: Path,
    out: Path,
    done: Callable[[Case], None],
    locator: Path | None,
    engine_kinds: Sequence[EngineKind],
    gpu: torch.device | None,
    shift_tests: Sequence[ShiftTestRecord],
    spacings: Sequence[Spacing],
) -> str:
    (out / WEIGHTS).parent.mkdir(parents=True)
    shutil.copyfile(run / train.WEIGHTS, out / WEIGHTS)
    recipe, located = _with_locator(recipe, locator, out)
    (out / CONFIG).write_text(recipe.service.model_dump_json(indent=2) + "\n")

    network = build_network(recipe.service.network)
    network.load_state_dict(load_file(out / WEIGHTS))
    cases = recipe.cases(data)[recipe.validation_split]
    measurement = measure(network.eval(), recipe.service, cases, done)
    further = _further(network, recipe, cases, done, [kind for kind in engine_kinds if kind != REFERENCE])
    if gpu is not None:
        further += _further(copy.deepcopy(network).to(gpu), recipe, cases, done, available(gpu))
    resolutions = measure_resolutions(network, recipe.service, cases, spacings, done)
    beyond_1_0 = shift_tests or resolutions or any(each.device != CPU for each in further)
    card = CalibrationCard(
        schema_version="1.1" if beyond_1_0 else "1.0",
        model=recipe.service.name,
        model_version=recipe.service.version,
        date=dt.datetime.now(dt.UTC).date(),
        weights_sha256=sha256_of(out / WEIGHTS),
        config_sha256=sha256_of(out / CONFIG),
        population=recipe.population(cases),
        measurements=[measurement, *further],
        shift_references=_shift_references(measurement.cases),
        resolutions=tuple(resolutions),
        shift_tests=tuple(shift_tests),
        locating=located,
    )
    if recipe.acceptance is not None:
        card = card.with_acceptance(recipe.acceptance)
    (out / CARD).write_text(card.model_dump_json() + "\n")
    _write_companions(recipe, card, out)
    write_manifest(out)
    return _proved_identity(out, cases[0], measurement.cases[0], done)


def _further(
    network: nn.Module,
    recipe: Recipe,
    cases: list[Case],
    done: Callable[[Case], None],
    engine_kinds: Sequence[EngineKind],
) -> list[Measurement]:
    """Return the measurements with these engines on the network's device; engines that fail their check are left out."""
    measurements = []
    for engine_kind in engine_kinds:
        with suppress(EngineDisagrees):
            engine = run_by(engine_kind, network, recipe.service)
            measurements.append(measure(engine, recipe.service, cases, done, engine_kind=engine_kind))
    return measurements


def _with_locator(recipe: Recipe, run: Path | None, out: Path) -> tuple[Recipe, Locating | None]:
    """Copy the locator's weights; return the recipe that declares the locator, and its block of the card."""
    if run is None:
        return recipe, None
    if not (run / LOCATING).is_file():
        msg = f"{run} does not say how well its locator does. Run calibrant measure-locator first."
        raise BundleInvalid(msg)
    shutil.copyfile(run / LOCATOR_WEIGHTS, out / LOCATOR)
    declaration = Locator.model_validate_json((run / DECLARATION).read_bytes())
    service = ServiceConfig.model_validate(recipe.service.model_dump() | {"locator": declaration.model_dump()})
    return replace(recipe, service=service), Locating.model_validate_json((run / LOCATING).read_bytes())


def _shift_references(cases: list[CaseRecord]) -> tuple[ShiftReference, ...]:
    rows = [
        [n * mm for n, mm in zip(case.shape, case.spacing_mm, strict=True)] + list(case.spacing_mm) for case in cases
    ]
    columns = zip(*rows, strict=True)
    return tuple(
        ShiftReference(feature=feature, unit="mm", values=list(values))
        for feature, values in zip(SIZES, columns, strict=True)
    )


def _write_companions(recipe: Recipe, card: CalibrationCard, out: Path) -> None:
    (out / "configs").mkdir()
    (out / "configs" / "metadata.json").write_text(json.dumps(metadata(recipe.service, card), indent=2) + "\n")
    (out / "configs" / "inference.json").write_text(json.dumps(inference_config(recipe.service), indent=2) + "\n")
    (out / "LICENSE").write_text(recipe.licence_notice)
    (out / "docs").mkdir()
    (out / "docs" / "README.md").write_text(_model_card(recipe, card))


def _model_card(recipe: Recipe, card: CalibrationCard) -> str:
    population, scores = card.population, card.measurements[0].scores
    rows = "\n".join(f"| {name} | {s.value:.4f} | {s.low:.4f} to {s.high:.4f} |" for name, s in scores.items())
    return f"""\
# {recipe.service.name} {recipe.service.version}

{recipe.service.description}

- **Intended use:** research. Not a medical device; not for diagnosis or treatment.
- **Input:** {recipe.service.modality}, {recipe.service.anatomy}.
{_accepts(card)}
- **Trained on:** {population.dataset}, {", ".join(recipe.train_splits)}. {population.citation}.
- **Measured on:** {population.split}, {population.n_cases} cases of {population.n_persons} persons, {population.protocol}, {card.date}.
{_resolutions(card)}- **Temperature:** {", ".join(f"{t:.3g}" for t in recipe.service.temperature)} (1: logits as the network gives them).
- **Limits:** {recipe.limits}.
{_locating(card.locating)}
| figure (foreground, native grid) | value | 95 % interval over persons |
|---|---|---|
{rows}
"""


def _accepts(card: CalibrationCard) -> str:
    lines = "\n".join(f"  - {description}" for description in card.accepted.descriptions)
    return f"""\
- **Accepts:** a scan that says otherwise is refused, or, if the caller insists, answered with the statement withdrawn; so is one
  whose sizes lie outside. What a scan does not say is listed in its statement.
{lines}"""


def _resolutions(card: CalibrationCard) -> str:
    scores = [found.scores["dsc"].value for found in card.resolutions]
    known = [score for score in scores if score is not None]
    if not known:
        return ""
    sizes = [mm for found in card.resolutions for mm in found.spacing_mm]
    return f"""\
- **Other voxel sizes:** measured on the same cases, brought to {len(known)} voxel sizes between {min(sizes):g} and {max(sizes):g} mm: mean DSC
  {min(known):.3f} to {max(known):.3f}. A statement quotes the nearest; it is withdrawn below {LEAST_DSC:.2f} and farther than a factor of {MARGIN}.
"""


def _locating(located: Locating | None) -> str:
    if located is None or located.distance_mm_median is None or located.distance_mm_p95 is None:
        return ""
    return f"""\
- **Locating** in a larger scan was not validated against expert labels: none of whole heads were at hand. Of
  {located.scans} scans drawn from {located.heads} held-out label maps, {located.boxes_hold} had boxes that hold 99 % of every
  structure; a box lies {located.distance_mm_median:.1f} mm off its middle (median; 95 % within {located.distance_mm_p95:.1f} mm). In
  {located.found_in_empty} of {located.empty_scans} scans without the anatomy something was found.
"""


def _proved_identity(out: Path, case: Case, expected: CaseRecord, done: Callable[[Case], None]) -> str:
    bundle = load_bundle(out, torch.device("cpu"))
    again = measure(bundle.network, bundle.description.config, [case], done)
    if again.cases != [expected]:
        msg = f"The bundle read back computes something else for {case.name} than before it was written."
        raise BundleInvalid(msg)
    return bundle.description.identity
