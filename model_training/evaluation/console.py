"""What the commands print of a measurement."""

from typing import TYPE_CHECKING

import typer

from service.calibration.shift import LEAST_PERSONS

if TYPE_CHECKING:
    from model_training.evaluation.site import SiteEvaluation
    from model_training.evaluation.temperature import Temperatures
    from service.bundle.card import Measurement, ObservedAnswer, ShiftTestRecord
    from service.schemas import Figure, SiteFigures


def print_scores(split: str, measurement: "Measurement") -> None:
    """Print every figure of a measurement with its interval, the mean over the structures first."""
    persons = len({case.person for case in measurement.cases})
    typer.echo(
        f"{split}: {len(measurement.cases)} cases of {persons} persons, {measurement.engine} {measurement.precision}"
    )
    typer.echo("foreground, native grid; 95 % intervals over persons")
    for structure, scores in {"mean": measurement.scores, **measurement.class_scores}.items():
        for name, score in scores.items():
            if score.value is None or score.low is None or score.high is None:
                typer.echo(f"  {structure:24} {name:12} undefined")
            else:
                typer.echo(f"  {structure:24} {name:12} {score.value:.4f}  ({score.low:.4f} to {score.high:.4f})")


def print_temperatures(temperatures: "Temperatures") -> None:
    """Print fitted temperatures and the NLL with and without them."""
    persons, folds = temperatures.n_persons, ", ".join(temperatures.folds)
    typer.echo(f"{temperatures.n_cases} cases of {persons} persons ({folds}), out of fold")
    typer.echo(f"  scalar {temperatures.scalar:.4f}; per class {' '.join(f'{t:.4f}' for t in temperatures.per_class)}")
    typer.echo(f"  with the lowest ACE {temperatures.least_ace:.2f}")
    for scaling, nll in temperatures.nll.items():
        typer.echo(f"  {scaling:10} NLL {nll:.5f}  ACE {temperatures.ace[scaling]:.5f}")


def print_shift_test(record: "ShiftTestRecord") -> None:
    """Print the DSC of the observed answers, clean and mildly spoilt, and how many clean ones would be withdrawn."""
    kinds: dict[str, list[float]] = {}
    for answer in record.answers:
        kinds.setdefault(answer.artefacts.rpartition(" ")[0] or "clean", []).append(answer.dsc)
    persons = {answer.person for answer in record.answers}
    typer.echo(f"{len(kinds['clean'])} cases of {len(persons)} persons, out of fold; {len(record.features)} features")
    for kind, scores in kinds.items():
        typer.echo(f"  {kind:16} {len(scores):4} answers, mean DSC {sum(scores) / len(scores):.4f}")
    if len(persons) < LEAST_PERSONS:
        typer.echo(f"  too few persons: a shift test needs at least {LEAST_PERSONS}")
        return
    alarms = sum(_withdrawn(record, answer) for answer in record.answers if not answer.artefacts)
    typer.echo(f"  {alarms} clean answers would be withdrawn, each compared with the other persons")


def _withdrawn(record: "ShiftTestRecord", answer: "ObservedAnswer") -> bool:
    names = [feature.name for feature in record.features]
    return record.without(answer.person).test().verdict(dict(zip(names, answer.values, strict=True))).shifted


def print_site(evaluation: "SiteEvaluation") -> None:
    """Print the site's figures beside the card's, of all cases and of those whose statement holds, and what failed."""
    for name, why in evaluation.failed.items():
        typer.echo(f"not measured: {name}: {why}", err=True)
    for cohort, figures in evaluation.figures.items():
        if cohort == "held" and figures.n_cases == evaluation.figures["all"].n_cases:
            continue  # the same cases
        _print_site_figures("all cases" if cohort == "all" else "cases whose statement holds", figures)


def _print_site_figures(cohort: str, figures: "SiteFigures") -> None:
    verdicts = ", ".join(f"{number} {status}" for status, number in sorted(figures.statements.items()))
    typer.echo(f"\n{cohort}: {figures.n_cases} of {figures.n_persons} persons ({verdicts})")
    if figures.card_n_cases is None:
        typer.echo("  The card measures other structures than these, so that there is nothing to compare with.")
    else:
        typer.echo(
            f"card: {figures.card_n_cases} cases of {figures.card_n_persons} persons; 95 % intervals over persons"
        )
    typer.echo(f"  {'':10} {'here':26} {'card':26} {'difference':28} {'p':7} differs")
    for name, figure in figures.figures.items():
        row = [_interval(found) for found in (figure.site, figure.card, figure.difference)]
        p = "" if figure.p is None else f"{figure.p:.4f}"
        differs = {True: "yes", False: "not shown", None: ""}[figure.differs]
        typer.echo(f"  {name:10} {row[0]:26} {row[1]:26} {row[2]:28} {p:7} {differs}")


def _interval(figure: "Figure | None") -> str:
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return "-"
    return f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"


def disagrees(measured: "Measurement", stated: "Measurement") -> bool:
    """Print how far a measurement differs from what the card states; return whether it exceeds the tolerance."""
    from model_training.evaluation.evaluate import TOLERANCE, differences

    tolerance = TOLERANCE[measured.precision]
    differing = differences(measured, stated)
    largest = max(differing.values(), default=0.0)
    if not differing:
        typer.echo("Every figure and every sum equals the card's exactly.")
    else:
        typer.echo(f"{len(differing)} figures or cases differ from the card's by up to {largest:.2g}.")
        typer.echo(f"Tolerance {tolerance:g}; this is {measured.platform}, the card was measured on {stated.platform}.")
    return largest > tolerance
