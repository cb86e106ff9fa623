"""The training commands of `calibrant`, joined to it by entry point; heavy libraries are imported when used."""

import sys
from collections.abc import Collection
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from model_training.config import Recipe
    from model_training.data.case import Case
    from model_training.evaluation.temperature import Scaling
    from model_training.locator.recipe import LocatorRecipe
    from service.bundle.reader import LoadedBundle

app = typer.Typer()

RecipeName = Annotated[str, typer.Argument(help="Name of the recipe, e.g. hippocampus.")]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of the data set, in its published layout.", exists=True, file_okay=False)
]
Maps = Annotated[
    Path, typer.Option("--maps", help="Folder of label maps of whole heads with FreeSurfer's values.", exists=True)
]
TemperatureFile = Annotated[
    Path | None, typer.Option("--temperature", help="File that calibrant calibrate wrote; 1 by default.", exists=True)
]
ScalingOption = Annotated[
    Literal["scalar", "per-class", "least-ace"],
    typer.Option("--scaling", help="Which temperature of the file: with the lowest NLL, or with the lowest ACE."),
]
Runs = Annotated[
    Path | None, typer.Option(help="Instead: print the tables of the runs in this folder, as Markdown.", exists=True)
]


@app.command()
def train(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: weights and record.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same run on the same machine.")] = 0,
    device: Annotated[str, typer.Option(help="torch device, e.g. cpu or cuda:0.")] = "cpu",
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
) -> None:
    """Train a recipe's network; `torchrun -m service train ...` shares each batch between several processes."""
    from model_training.training.parallel import process_group
    from model_training.training.progress import Progress, TensorBoard, Watcher
    from model_training.training.train import train as run_training

    chosen = _recipe(recipe)
    with process_group(device) as group, ExitStack() as stack:
        watchers: list[Watcher] = []
        if group.leads:
            watchers.append(stack.enter_context(Progress(chosen.schedule.steps)))
        if group.leads and tensorboard is not None:
            watchers.append(TensorBoard(tensorboard))
        run_training(chosen, data, out, seed=seed, group=group, watchers=watchers)
    if group.leads:
        typer.echo(
            f"Weights and record are in {out}. Next: calibrant export {recipe} --data {data} --run {out} -o BUNDLE"
        )


@app.command()
def train_locator(
    recipe: RecipeName,
    maps: Maps,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: weights and declaration.")],
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of every scan.")] = 0,
) -> None:
    """Train the locator of a recipe, on scans drawn from label maps; stop it and call it again to resume."""
    from model_training.locator.train import train_locator as run_training

    chosen = _locator(recipe)
    steps = chosen.schedule.steps

    def report(step: int, loss: float) -> None:
        if step % 10 == 0:
            typer.echo(f"step {step}/{steps} loss {loss:.3f}")

    run_training(chosen, maps, out, seed=seed, report=report)
    typer.echo(
        f"Weights and declaration are in {out}. Next: calibrant measure-locator {recipe} --maps {maps} --run {out}"
    )


@app.command()
def measure_locator(
    recipe: RecipeName,
    maps: Maps,
    run: Annotated[
        Path, typer.Option("--run", help="Folder that calibrant train-locator wrote.", exists=True, file_okay=False)
    ],
    n: Annotated[int, typer.Option("-n", help="Number of scans with the anatomy, and as many without.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the scans.")] = 1,
) -> None:
    """Measure a locator on scans drawn from label maps that it never saw, for the card of its bundle."""
    from model_training.locator.train import measure_locator as measure

    measured = measure(_locator(recipe), maps, run, n=n, seed=seed)
    typer.echo(measured.model_dump_json(indent=2))
    typer.echo(f"Next: calibrant export {recipe} ... --locator {run}")


@app.command()
def export(  # noqa: PLR0913, PLR0917 - one for each option
    recipe: RecipeName,
    data: Data,
    run: Annotated[
        Path, typer.Option("--run", help="Folder that calibrant train wrote.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle; must not exist.")],
    temperature: TemperatureFile = None,
    scaling: ScalingOption = "scalar",
    locator: Annotated[
        Path | None, typer.Option(help="Folder of a trained and measured locator; no locator by default.", exists=True)
    ] = None,
    shift_test: Annotated[
        Path | None,
        typer.Option(help="File that calibrant shift-test wrote; without it no answer's statement holds.", exists=True),
    ] = None,
    resolutions: Annotated[
        bool,
        typer.Option(
            "--resolutions", help="Measure at voxel sizes that people send, too, so that statements cover them."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="GPU whose engines are measured beside the CPU's, e.g. cuda:0.")] = "cpu",
) -> None:
    """Measure a trained network on persons it never saw, and write the bundle with its calibration card."""
    from model_training.evaluation.evaluate import CPU
    from model_training.evaluation.resolution import common_spacings
    from model_training.export.bundle import export as write_bundle
    from service.bundle.card import ShiftTestRecord
    from service.engines.devices import claim, first_device
    from service.engines.machine import available

    gpu = None if (claimed := claim(first_device(device))) == CPU else claimed
    tests = [] if shift_test is None else [ShiftTestRecord.model_validate_json(shift_test.read_bytes())]
    identity = write_bundle(
        _tempered(_recipe(recipe), temperature, scaling),
        data,
        run,
        out,
        _show,
        locator,
        engine_kinds=available(CPU),
        gpu=gpu,
        shift_tests=tests,
        spacings=common_spacings() if resolutions else (),
    )
    typer.echo(f"{identity} is in {out}, read back and checked.")


@app.command()
def crossvalidate(  # noqa: PLR0913, PLR0917 - one for each option
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs; finished folds are skipped.")],
    fold: Annotated[list[int] | None, typer.Option(help="Folds to hold out; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same runs on the same machine.")] = 0,
    device: Annotated[str, typer.Option(help="torch device, e.g. cpu or cuda:0.")] = "cpu",
    temperature: TemperatureFile = None,
    scaling: ScalingOption = "scalar",
) -> None:
    """Train without each fold in turn and measure on it; folds are by person. Stop it and call it again to resume.

    With --temperature, the measurement is that of the calibrated probabilities; training does not depend on it.
    """
    from model_training.evaluation.console import print_scores
    from model_training.evaluation.crossvalidate import MEASUREMENT, measure_folds, train_folds
    from model_training.training.parallel import process_group

    chosen = _tempered(_recipe(recipe), temperature, scaling)
    folds = _folds(chosen, data, fold)
    with process_group(device) as group:
        train_folds(chosen, data, out, folds, seed=seed, group=group)
        if not group.leads:
            return
    print_scores(f"{', '.join(folds)}, out of fold", measure_folds(chosen, data, out, folds, _show))
    typer.echo(f"  {out / MEASUREMENT}")


@app.command()
def shift_test(  # noqa: PLR0913, PLR0917 - one for each option
    recipe: RecipeName,
    data: Data,
    runs: Annotated[
        Path, typer.Option("--runs", help="Folder that calibrant crossvalidate filled.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file of the answers, for calibrant export.")],
    fold: Annotated[list[int] | None, typer.Option(help="Folds whose persons are observed; all by default.")] = None,
    temperature: TemperatureFile = None,
    scaling: ScalingOption = "scalar",
) -> None:
    """Describe the answers about each fold by the network that never saw it: what new answers are compared with."""
    from model_training.evaluation.console import print_shift_test
    from model_training.evaluation.shift import observe_folds

    chosen = _tempered(_recipe(recipe), temperature, scaling)
    record = observe_folds(chosen, data, runs, _folds(chosen, data, fold), _show)
    out.write_text(record.model_dump_json() + "\n")
    print_shift_test(record)
    typer.echo(f"Next: calibrant export {recipe} ... --shift-test {out}")


@app.command()
def calibrate(  # noqa: PLR0913, PLR0917 - one for each option
    recipe: RecipeName,
    data: Data,
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="Folder that calibrant crossvalidate filled.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file of the temperatures, for calibrant export.")
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option(help="Folds to fit on; by default those that the recipe trains on.")
    ] = None,
    # The former name of verify-engine, for one version.
    bundle: Annotated[Path | None, typer.Option("--verify", hidden=True, exists=True, file_okay=False)] = None,
    engine: Annotated[str | None, typer.Option(hidden=True)] = None,
    state: Annotated[Path | None, typer.Option(hidden=True, envvar="CALIBRANT_STATE_DIR")] = None,
) -> None:
    """Fit a temperature on out-of-fold cases: scalar and per class with the lowest NLL, scalar with the lowest ACE."""
    from model_training.evaluation.console import print_temperatures
    from model_training.evaluation.temperature import calibrate as fit

    chosen = _recipe(recipe)
    if bundle is not None:
        _verify(bundle, chosen, data, engine, state, "cpu")
        return
    if runs is None or out is None:
        typer.echo("--runs and --out are needed to fit a temperature.", err=True)
        raise typer.Exit(2)
    folds = [f"fold{k}" for k in fold] if fold else list(chosen.train_splits)
    temperatures = fit(chosen, data, runs, folds, _show)
    out.write_text(temperatures.model_dump_json(indent=2) + "\n")
    print_temperatures(temperatures)
    typer.echo(f"Next: calibrant export {recipe} ... --temperature {out} [--scaling ...]")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", exists=True, file_okay=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Folder of labelled scans, or CSV file with the columns image, label, person.", exists=True
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe that knows the data set's layout and splits.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --recipe: split to measure; the card's own by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a table of the cases and reliability diagrams.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="As for serving: the fastest that the card covers by default.", envvar="CALIBRANT_ENGINE"),
    ] = "auto",
) -> None:
    """Measure a bundle on labelled scans, and print its figures beside the card's with a test whether they differ.

    With --recipe, measure a split of the recipe's data set; on the card's own, exit code 1 if the card cannot be repeated.
    """
    import torch

    from service.engines.ready import ready_bundle

    if recipe is None and split is not None:
        typer.echo("--split needs --recipe, which knows the splits.", err=True)
        raise typer.Exit(2)
    loaded = ready_bundle(bundle, torch.device("cpu"), engine)
    if recipe is None:
        _evaluate_site(loaded, data, out)
    else:
        _evaluate_split(loaded, _recipe(recipe), data, split, out)


def _evaluate_site(bundle: "LoadedBundle", data: Path, out: Path | None) -> None:
    """Measure a bundle on any labelled folder; exit code 1 if a case could not be measured."""
    from model_training.data.layouts.labelled import read_labelled
    from model_training.evaluation.console import print_site
    from model_training.evaluation.site import evaluate_site, write_site

    found = read_labelled(data)
    for path in found.left_out:
        typer.echo(f"left out: {path} has no partner.", err=True)
    typer.echo(f"{len(found.cases)} labelled cases; persons are told by {found.persons}")
    evaluation = evaluate_site(bundle, found.cases, _show)
    print_site(evaluation)
    if out is not None and evaluation.cases:
        for path in write_site(out, evaluation, f"{bundle.description.config.name} on {data.name}"):
            typer.echo(f"  {path}")
    raise typer.Exit(1 if evaluation.failed else 0)


def _evaluate_split(bundle: "LoadedBundle", recipe: "Recipe", data: Path, split: str | None, out: Path | None) -> None:
    """Measure a bundle on a split of a recipe's data set; on the card's own, compare with the card."""
    from model_training.evaluation.console import disagrees, print_scores
    from model_training.evaluation.evaluate import evaluate as measure_bundle
    from model_training.evaluation.report import write_report
    from model_training.evaluation.results import write_results

    name = split or recipe.validation_split
    splits = recipe.cases(data)
    _reject_unknown("split", name, splits)
    evaluation = measure_bundle(bundle, recipe, name, splits[name], _show)
    measurement = evaluation.measurement
    print_scores(name, measurement)
    if out is not None:
        for path in (*write_results(out, evaluation), write_report(out / "report.html", evaluation)):
            typer.echo(f"  {path}")
    stated = bundle.description.card.measurement(measurement.engine, measurement.precision, measurement.device)
    if name == recipe.validation_split and stated is not None:
        raise typer.Exit(disagrees(measurement, stated))


@app.command()
def verify_engine(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", exists=True, file_okay=False)],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe that knows the data set's layout.")],
    data: Data,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine to measure, e.g. openvino-bf16; by default all that the machine has and the card lacks."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="State directory of the service, where the measurement is kept.", envvar="CALIBRANT_STATE_DIR"
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="Device that serves, e.g. cpu or cuda:0; the first of several.", envvar="CALIBRANT_DEVICE"),
    ] = "cpu",
) -> None:
    """Measure an engine that a bundle's card does not cover on the card's cases, so that it may serve the bundle here."""
    _verify(bundle, _recipe(recipe), data, engine, state, device)


@app.command()
def compare(  # noqa: PLR0913, PLR0917 - one for each option
    recipe: Annotated[str | None, typer.Argument(help="Name of the recipe, e.g. hippocampus.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the data set, in its published layout.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the runs; finished ones are skipped.")
    ] = None,
    fold: Annotated[list[int] | None, typer.Option(help="Folds to hold out; all by default.")] = None,
    configuration: Annotated[list[str] | None, typer.Option(help="Configurations; all by default.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; 0 by default.")] = None,
    report: Runs = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="With --report: draw DSC against ACE to this file, .png or .svg.", dir_okay=False),
    ] = None,
) -> None:
    """Train each configuration without each fold and measure it there; --report prints the tables. Call it again to resume."""
    if report is not None:
        _report(report, picture)
        return
    if recipe is None or data is None or out is None:
        typer.echo("RECIPE, --data and --out are needed to compare, or --report to print.", err=True)
        raise typer.Exit(2)
    from model_training.comparison.run import RunName, run_once
    from model_training.recipes import COMPARISONS

    _recipe(recipe)
    configurations = COMPARISONS[recipe]
    for name in configuration or []:
        _reject_unknown("configuration", name, configurations)
    folds = _folds(next(iter(configurations.values())), data, fold)
    out.mkdir(parents=True, exist_ok=True)
    for number, name, held_out in product(seed or [0], configuration or configurations, folds):
        run = RunName(name, held_out, number)
        if not run.is_done_in(out):
            typer.echo(str(run_once(configurations[name], run, data, out, _show)))


@app.command(hidden=True)
def comparison(
    runs: Annotated[Path, typer.Argument(exists=True)],
    picture: Annotated[Path | None, typer.Option(dir_okay=False)] = None,
) -> None:
    """Do what `compare --report` does: its former name, for one version."""
    _report(runs, picture)


def _report(runs: Path, picture: Path | None) -> None:
    """Print the tables of a comparison, as Markdown, from its runs alone."""
    from model_training.comparison.tables import compared, load_runs, table

    comparison = compared(load_runs(runs))
    typer.echo(table(comparison))
    if picture is not None:
        from model_training.comparison.front import draw_front

        picture.write_bytes(draw_front(comparison, "svg" if picture.suffix == ".svg" else "png"))


def _verify(
    bundle: Path, recipe: "Recipe", data: Path, engine: str | None, state: Path | None, device_name: str
) -> None:
    """Measure a bundle with each engine that its card does not cover on a device, or with the one that was named."""
    from model_training.evaluation.console import print_scores
    from model_training.evaluation.verify import verify
    from service.bundle.description import describe_bundle
    from service.bundle.engine_kind import ENGINE_KINDS
    from service.engines.devices import claim, first_device
    from service.engines.machine import available, device_kind

    if state is None:
        typer.echo("--state, or CALIBRANT_STATE_DIR, must name the service's state directory.", err=True)
        raise typer.Exit(2)
    if engine is not None:
        _reject_unknown("engine", engine, ENGINE_KINDS)
    device = claim(first_device(device_name))
    card, kind = describe_bundle(bundle).card, device_kind(device)
    missing = [engine_kind for engine_kind in available(device) if card.measurement(*engine_kind, kind) is None]
    chosen = [ENGINE_KINDS[engine]] if engine else missing
    if not chosen:
        typer.echo(f"Nothing to measure: the card covers every engine that this machine has for {kind}.")
    for engine_kind in chosen:
        measurement, moved = verify(bundle, recipe, data, engine_kind, state, _show, device=device)
        print_scores(recipe.validation_split, measurement)
        furthest = max(moved, key=lambda name: moved[name])
        typer.echo(
            f"{engine_kind.name} may be served on {kind}; furthest from the card's float32: {furthest}, by "
            f"{moved[furthest]:.2g}"
        )


def _folds(recipe: "Recipe", data: Path, numbers: list[int] | None) -> list[str]:
    """Return the names of these folds, or of all development folds if no numbers are given."""
    if numbers:
        return [f"fold{k}" for k in numbers]
    return [name for name in recipe.cases(data) if name != "test"]


def _reject_unknown(what: str, name: str, known: Collection[str]) -> None:
    """End the command with exit code 2 if a name on the command line is none of the known ones."""
    if name not in known:
        typer.echo(f"There is no {what} {name}; there are: {', '.join(known)}.", err=True)
        raise typer.Exit(2)


def _recipe(name: str) -> "Recipe":
    from model_training.recipes import RECIPES

    _reject_unknown("recipe", name, RECIPES)
    return RECIPES[name]


def _tempered(recipe: "Recipe", temperature: Path | None, scaling: "Scaling") -> "Recipe":
    """Return the recipe with a temperature of a file that calibrant calibrate wrote, or as it is without one."""
    from model_training.evaluation.temperature import Temperatures

    if temperature is None:
        return recipe
    fitted = Temperatures.model_validate_json(temperature.read_bytes())
    return recipe.with_temperature(fitted.of_classes(scaling, len(recipe.service.labels)))


def _locator(recipe: str) -> "LocatorRecipe":
    from model_training.recipes import LOCATORS

    _reject_unknown("locator of", recipe, LOCATORS)
    return LOCATORS[recipe]


def _show(case: "Case") -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{case.name}", nl=False, err=True)
