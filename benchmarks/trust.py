"""Measures when an answer is withdrawn: `python benchmarks/trust.py BUNDLE --split fold5`; table and figures of docs/results/trust.md.

Every case of the split is answered clean and spoilt (`spoilt.py`). Persons of the split are left out of the reference with
which they are compared.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from page import publish, table
from scipy.stats import binomtest
from spoilt import SEVERITIES, SPOILINGS, Spoilt
from torch import nn

from model_training.config import Recipe
from model_training.data.case import Case, read_case
from model_training.evaluation.crossvalidate import networks_of
from model_training.evaluation.shift import answer_about, mean_dsc
from model_training.recipes.hippocampus import HIPPOCAMPUS
from service.bundle.acceptance import Judgement
from service.bundle.card import CalibrationCard, ShiftTestRecord
from service.bundle.reader import load_bundle
from service.bundle.schema import ServiceConfig
from service.bundle.statement import statement_of
from service.calibration.shift import ALPHA, ShiftVerdict
from service.errors import ScanError
from service.pipeline.grid import Grid
from service.pipeline.preprocess import needs_tissue
from service.pipeline.summary import findings_about, sizes_of
from service.pipeline.tissue import tissue_of
from service.volume import Volume

PAGE = Path(__file__).parents[1] / "docs" / "results" / "trust.md"
BAD, GOOD, DOUBTED = 0.70, 0.80, 0.80
REPLICATES = 200


@dataclass(frozen=True)
class Answer:
    """One answer: about whom, to what, how good, and what became of it."""

    person: str
    spoiling: str
    severity: str
    dsc: float | None
    """Null if the anatomy is not in the image."""
    verdict: str
    """held, withdrawn or refused."""
    p: float

    @property
    def bad(self) -> bool:
        """Whether nobody should use the mask."""
        return self.dsc is None or self.dsc < BAD

    @property
    def good(self) -> bool:
        """Whether the mask is as good as one of a clean scan may be."""
        return self.dsc is not None and self.dsc >= GOOD


@dataclass(frozen=True)
class Subject:
    """What is judged: a bundle, or a run that never saw the split, which has no card."""

    network: nn.Module
    config: ServiceConfig
    record: ShiftTestRecord | None
    card: CalibrationCard | None

    def verdict(self, volume: Volume, shift: ShiftVerdict | None) -> str:
        """Return whether the statement of a scan that says nothing about itself holds, as the service finds it."""
        if self.card is None:
            return "withdrawn" if shift and shift.shifted else "held"
        tissue = tissue_of(volume) if needs_tissue(self.config) else None
        sizes = sizes_of(volume, Grid.of(volume, self.config), None, tissue)
        findings = findings_about(self.card, sizes, Judgement(), shift, located=False)
        status = statement_of(self.card, self.card.measurements[0], findings).status
        return "withdrawn" if status == "withdrawn" else "held"


def spoilt_versions(scan: Volume, classes: np.ndarray, name: str, seed: int) -> Iterator[tuple[str, str, Spoilt]]:
    """Yield the clean case, and every spoiling of it at each severity."""
    image = scan.array_CDHW[0].astype(np.float32)
    yield "clean", "", Spoilt(image, classes)
    for spoiling, spoil in SPOILINGS.items():
        for severity, word in enumerate(SEVERITIES):
            generator = np.random.default_rng([seed, crc32(f"{name} {spoiling} {word}".encode())])
            yield spoiling, word, spoil(image, classes, severity, generator)


def answers_about(subject: Subject, case: Case, seed: int) -> Iterator[Answer]:
    """Answer a case and its spoilt versions."""
    config, record = subject.config, subject.record
    scan, classes = read_case(case, config)
    test = record.without(case.person).test() if record else None
    values = range(1, len(config.labels))
    for spoiling, severity, spoilt in spoilt_versions(scan, classes, case.name, seed):
        volume = replace(scan, array_CDHW=spoilt.image[np.newaxis])
        try:
            mask, features = answer_about(subject.network, volume, config)
        except ScanError:
            yield Answer(case.person, spoiling, severity, None, "refused", 0.0)
            continue
        shift = test.verdict(features) if test else None
        dsc = None if spoilt.labels is None else mean_dsc(mask, spoilt.labels, values)
        yield Answer(case.person, spoiling, severity, dsc, subject.verdict(volume, shift), shift.p if shift else 1.0)


def auroc(answers: Sequence[Answer], seed: int) -> tuple[float, float, float]:
    """Return the area for telling DSC below `DOUBTED` by the p-value, with its 95 % interval over persons."""
    measured = [a for a in answers if a.dsc is not None]
    persons = sorted({a.person for a in measured})
    of_person = {person: [a for a in measured if a.person == person] for person in persons}
    generator = np.random.default_rng(seed)
    areas = [_area(measured)]
    for _ in range(REPLICATES):
        drawn = generator.choice(persons, len(persons))
        areas.append(_area([a for person in drawn for a in of_person[person]]))
    low, high = np.quantile(areas[1:], [0.025, 0.975])
    return areas[0], float(low), float(high)


def _area(answers: Sequence[Answer]) -> float:
    low = np.array([a.p for a in answers if a.dsc is not None and a.dsc < DOUBTED])
    high = np.array([a.p for a in answers if a.dsc is not None and a.dsc >= DOUBTED])
    less = np.searchsorted(np.sort(high), low, "left")
    equal = np.searchsorted(np.sort(high), low, "right") - less
    return float(1 - (less + equal / 2).sum() / (len(low) * len(high)))


def figures(answers: Sequence[Answer], seed: int) -> list[str]:
    """Return the sentences under the table."""
    bad = [a for a in answers if a.bad]
    stopped = sum(a.verdict != "held" for a in bad)
    clean = [a for a in answers if a.spoiling == "clean"]
    alarms = sum(a.verdict != "held" for a in clean)
    good = [a for a in answers if a.spoiling != "clean" and a.good]
    kept = sum(a.verdict == "held" for a in good)
    area, low, high = auroc(answers, seed)
    p = binomtest(alarms, len(clean), ALPHA, alternative="greater").pvalue
    return [
        f"- Bad answers (DSC below {BAD:.2f}, or the anatomy is not there): **{stopped} of {len(bad)}** withdrawn or refused ({100 * stopped / len(bad):.1f} %).",
        f"- Clean cases withdrawn: **{alarms} of {len(clean)}**; alpha {ALPHA}, exact binomial test p = {p:.3g}.",
        f"- Spoilt but good (DSC at least {GOOD:.2f}): **{kept} of {len(good)}** keep their statement ({100 * kept / len(good):.1f} %).",
        f"- AUROC of the p-value for a DSC below {DOUBTED:.2f}: {area:.3f} ({low:.3f} to {high:.3f}, persons resampled).",
    ]


def rows_of(answers: Sequence[Answer]) -> list[list[str]]:
    """Return a row for each spoiling and severity."""
    rows = []
    for key in dict.fromkeys((a.spoiling, a.severity) for a in answers):
        group = [a for a in answers if (a.spoiling, a.severity) == key]
        scores = [a.dsc for a in group if a.dsc is not None]
        counts = [str(sum(a.verdict == verdict for a in group)) for verdict in ("held", "withdrawn", "refused")]
        mean = f"{np.mean(scores):.3f}" if scores else "not there"
        rows.append([*key, mean, str(sum(a.bad for a in group)), *counts])
    return rows


def _subject(arguments: argparse.Namespace, recipe: Recipe, data: Path) -> Subject:
    """Return a bundle's network and card, or the network of the run that never saw the split."""
    record = arguments.shift_test and ShiftTestRecord.model_validate_json(arguments.shift_test.read_bytes())
    if arguments.runs:
        ((network, _),) = networks_of(recipe, data, arguments.runs, [arguments.split])
        return Subject(network, recipe.service, record, None)
    bundle = load_bundle(arguments.bundle, torch.device("cpu"))
    card = bundle.description.card
    return Subject(bundle.network, bundle.description.config, record or card.shift_test("whole"), card)


def main() -> None:
    """Print the table, and write it to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--runs", type=Path, help="in place of a bundle: folder of `calibrant crossvalidate`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="fold5", help="the test split is for reporting, once")
    parser.add_argument("--shift-test", type=Path, help="in place of the card's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the table to docs/results/trust.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = HIPPOCAMPUS
    data = arguments.data or Path(os.environ.get("CALIBRANT_DATA", "../shared/data")) / "Task04_Hippocampus"
    subject = _subject(arguments, recipe, data)
    cases = recipe.cases(data)[arguments.split]
    answers = [answer for case in cases for answer in answers_about(subject, case, arguments.seed)]
    persons = len({case.person for case in cases})
    head = ["input", "severity", "mean DSC", "bad", "held", "withdrawn", "refused"]
    text = "\n".join(
        [
            f"{subject.config.name} {subject.config.version}, {arguments.split}: {len(cases)} cases of {persons} persons, seed {arguments.seed}.",
            "",
            table(head, rows_of(answers)),
            "",
            *figures(answers, arguments.seed),
        ]
    )
    name = f"Crops of {arguments.split}{'' if subject.record else ', a model without a shift test'}"
    publish(name, text, PAGE if arguments.write else None)


if __name__ == "__main__":
    main()
