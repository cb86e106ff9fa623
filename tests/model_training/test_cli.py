import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.config import Recipe


@pytest.fixture
def tiny(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the tiny recipe and return its name."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    return "tiny"


def call(*arguments: object) -> tuple[int, str]:
    """Return exit code and output of a command line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_train_export_evaluate_lead_from_data_to_a_reproduced_card(tiny: str, tiny_msd: Path, tmp_path: Path) -> None:
    """train, export and evaluate work in sequence, and evaluate reproduces the card's figures exactly."""
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    assert call("train", tiny, "--data", tiny_msd, "-o", run)[0] == 0
    code, output = call("export", tiny, "--data", tiny_msd, "--run", run, "-o", bundle)
    assert code == 0
    assert "tiny@" in output
    code, output = call("evaluate", bundle, "--recipe", tiny, "--data", tiny_msd)
    assert code == 0
    assert "equals the card's exactly" in output
    code, output = call("evaluate", bundle, "--recipe", tiny, "--data", tiny_msd, "--split", "test")
    assert code == 0
    assert output.startswith("test: 1 cases of 1 persons")


def test_training_on_a_device_that_is_missing_ends_with_a_sentence(tiny_msd: Path, tmp_path: Path) -> None:
    """One line, no traceback, the exit code of a device that is not there, and no folder."""
    command = [sys.executable, "-m", "service", "train", "hippocampus", "--device", "cuda:9"]
    command += ["--data", str(tiny_msd), "-o", str(tmp_path / "run")]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 3
    assert ended.stderr.startswith("The device cannot be used: cuda:9 cannot be used: torch")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_training_can_be_watched_in_tensorboard(tiny: str, tiny_msd: Path, tmp_path: Path) -> None:
    """With --tensorboard the event files hold the loss terms of every step and the scores of every validation."""
    command = ("train", tiny, "--data", tiny_msd, "-o", tmp_path / "run", "--tensorboard", tmp_path / "events")
    assert call(*command)[0] == 0

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    training = {f"training/{name}": [1, 2, 3] for name in ("total", "dice_ce", "ace", "epoch")}
    assert steps == training | {f"validation/{name}": [2, 3] for name in ("dsc", "ace")}


def test_evaluate_writes_what_it_found(tiny: str, tiny_bundle: Path, tiny_msd: Path, tmp_path: Path) -> None:
    """With --out, evaluate writes a report, a table and diagrams of all cases and of each case, and prints their paths."""
    out = tmp_path / "out"
    command = ("evaluate", tiny_bundle, "--recipe", tiny, "--data", tiny_msd, "--split", "fold1", "-o", out)
    code, output = call(*command)
    assert code == 0
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    formats = ("json", "png", "svg")
    assert files == {"cases.csv", "report.html"} | {f"reliability.{extension}" for extension in formats} | {
        f"images/{case}.{extension}" for case in ("a1", "a2", "b1") for extension in formats
    }
    assert "report.html" in output
    assert "better than those on new patients" in (out / "report.html").read_text()


def test_a_card_that_claims_something_else_is_found_out(tiny: str, tiny_bundle: Path, tiny_msd: Path) -> None:
    """If the card's figures cannot be reproduced, evaluate says so and exits with 1."""
    code, output = call("evaluate", tiny_bundle, "--recipe", tiny, "--data", tiny_msd)
    assert code == 1
    assert "differ from the card's" in output


def test_any_labelled_folder_is_measured_without_a_recipe(tiny_bundle: Path, tiny_msd: Path, tmp_path: Path) -> None:
    """The site's figures stand beside the card's with a p-value; a label map that does not fit gives exit code 1."""
    code, output = call("evaluate", tiny_bundle, "--data", tiny_msd, "-o", tmp_path / "out")
    assert code == 0
    assert "5 labelled cases; persons are told by persons.json" in output
    assert "all cases: 5 of 4 persons (5 not compared)" in output
    assert {"here", "card", "difference", "differs"} <= set(output.split())
    assert (tmp_path / "out" / "cases.csv").is_file()

    (tiny_msd / "labelsTr" / "a1.nii.gz").write_bytes((tiny_msd / "imagesTr" / "a1.nii.gz").read_bytes())
    code, output = call("evaluate", tiny_bundle, "--data", tiny_msd)
    assert code == 1
    assert "not measured: a1: " in output


def test_a_split_needs_the_recipe_that_knows_it(tiny_bundle: Path, tiny_msd: Path) -> None:
    """Without --recipe, --split is refused."""
    code, output = call("evaluate", tiny_bundle, "--data", tiny_msd, "--split", "test")
    assert code == 2
    assert "--split needs --recipe" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "nonsense"), "There is no recipe nonsense"),
        (("--recipe", "tiny", "--split", "nonsense"), "There is no split nonsense"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(
    tiny: str, tiny_bundle: Path, tiny_msd: Path, arguments: tuple[str, ...], message: str
) -> None:
    """An unknown recipe or split exits with 2 and lists the known ones."""
    del tiny
    code, output = call("evaluate", tiny_bundle, "--data", tiny_msd, *arguments)
    assert code == 2
    assert message in output


def test_the_shipped_bundle_reproduces_its_card(real_hippocampus: Path) -> None:
    """`calibrant evaluate` on the shipped bundle finds every figure of its card again."""
    bundle = Path(__file__).parents[2] / "service" / "bundles" / "hippocampus-mr"
    code, output = call("evaluate", bundle, "--recipe", "hippocampus", "--data", real_hippocampus)
    assert code == 0, output


@pytest.mark.parametrize("command", [("compare", "--report"), ("comparison",)], ids=["now", "its former name"])
def test_the_tables_of_a_comparison_are_printed(command: tuple[str, ...]) -> None:
    """The committed runs give the lines of the committed page; the former name works for one version."""
    results = Path(__file__).parents[2] / "docs" / "results"

    code, output = call(*command, results / "runs" / "acdc")

    assert code == 0
    assert output.strip()
    assert all(line in (results / "acdc.md").read_text() for line in output.splitlines())


def test_a_comparison_needs_to_know_what_to_train_on() -> None:
    """Without --report, the recipe, the data and the folder are required."""
    code, output = call("compare", "acdc")
    assert code == 2
    assert "--report" in output
