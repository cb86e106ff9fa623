import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_training.config import Recipe, Schedule
from model_training.data import DataError, Sample, load_sample
from model_training.layouts.msd import read_msd
from model_training.parallel import ALONE
from model_training.progress import Progress
from model_training.train import draw_batch, learning_rate_factor, train, validation_scores
from model_training.transforms import one_model_for_both_sides
from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig

Run = Callable[..., Path]


@pytest.fixture
def run(tiny_msd: Path, tmp_path: Path, recipe: Recipe) -> Run:
    """Return the function that trains into a folder of a name, with a seed and other fields of the recipe."""

    def train_into(name: str, *, seed: int = 0, **fields: object) -> Path:
        changed = dataclasses.replace(recipe, **fields)  # type: ignore[arg-type]
        with Progress(changed.schedule.steps) as progress:
            train(changed, tiny_msd, tmp_path / name, seed=seed, group=ALONE, watchers=[progress])
        return tmp_path / name

    return train_into


def test_the_same_seed_gives_the_same_weights(run: Run) -> None:
    """Order, augmentation and first weights all follow from the seed; another seed gives other weights."""
    first, again, other = (
        load_file(run(name, seed=seed) / "model.safetensors") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_starts_from_the_weights_of_the_seed(run: Run, recipe: Recipe, tiny_config: ServiceConfig) -> None:
    """Steps too small to move anything leave what the seed draws; steps of the recipe's size do not."""
    still = dataclasses.replace(recipe.schedule, learning_rate=1e-30)
    torch.manual_seed(5)
    first = build_network(tiny_config.network).state_dict()

    unmoved, moved = (
        load_file(path / "model.safetensors") for path in (run("a", seed=5, schedule=still), run("b", seed=5))
    )

    assert first.keys() == unmoved.keys() == moved.keys()
    assert all(torch.allclose(unmoved[name], first[name]) for name in first)
    assert not any(torch.allclose(moved[name], first[name]) for name in first if name.endswith("conv.weight"))


def test_the_record_says_how_the_weights_came_about(run: Run) -> None:
    """Seed, data, loss and the validation at every second and at the last step are written down."""
    record = json.loads((run("a", seed=7, binning="soft", ace_weight=0.5) / "training.json").read_bytes())

    assert (record["recipe"], record["seed"], record["steps"], record["train_cases"]) == ("tiny", 7, 3, 3)
    assert (record["train_splits"], record["binning"]) == (["fold1"], "soft")
    assert (record["ace_weight"], record["ace_after"]) == (0.5, 1)
    assert [entry["step"] for entry in record["history"]] == [2, 3]
    assert all(0 <= entry["validation_dsc"] <= 1 for entry in record["history"])


def test_ace_joins_after_its_steps(run: Run) -> None:
    """With two steps of Dice and cross-entropy alone the second step has no ACE in its total, the third has."""
    history = json.loads((run("a", ace_weight=0.5, ace_after=2) / "training.json").read_bytes())["history"]

    second, third = ((entry["total"], entry["dice_ce"], entry["ace"]) for entry in history)
    assert second[0] == second[1]
    assert third[0] == pytest.approx(third[1] + 0.5 * third[2], rel=1e-5)
    assert third[2] > 0


def test_validation_does_not_change_the_weights(run: Run, recipe: Recipe) -> None:
    """Looking at the validation cases more often gives the same weights: nothing is chosen by them."""
    often = dataclasses.replace(recipe.schedule, validate_every=1)

    seldom, watched = (load_file(path / "model.safetensors") for path in (run("a"), run("b", schedule=often)))

    assert all(torch.equal(seldom[name], watched[name]) for name in seldom)


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_weights(
    run: Run, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Interrupted at any step and called again, a run ends with the weights and the history of one that was not."""
    schedule = dataclasses.replace(recipe.schedule, steps=6, validate_every=2)
    whole = run("whole", schedule=schedule)

    def killed(self: Progress, step: int, epoch: float, terms: dict[str, float]) -> None:
        del self, epoch, terms
        if step == killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as until_killed:
        until_killed.setattr(Progress, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed", schedule=schedule)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = run("killed", schedule=schedule)

    first, second = (load_file(path / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [json.loads((path / "training.json").read_bytes()) for path in (whole, resumed)]
    assert records[0]["history"] == records[1]["history"]
    assert sorted(path.name for path in resumed.iterdir()) == ["model.safetensors", "training.json"]


def test_a_folder_of_another_run_is_refused(run: Run, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of another seed is not gone on from, and a finished run is not trained over."""
    often = dataclasses.replace(recipe.schedule, validate_every=1)

    def killed(self: Progress, step: int, epoch: float, terms: dict[str, float]) -> None:
        del self, epoch, terms
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as until_killed:
        until_killed.setattr(Progress, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("a", schedule=often)

    with pytest.raises(DataError, match="another recipe, seed or data set"):
        run("a", seed=1, schedule=often)
    run("a", schedule=often)
    with pytest.raises(DataError, match="finished run"):
        run("a", schedule=often)


def test_batches_follow_from_seed_and_step(tiny_msd: Path, tiny_config: ServiceConfig) -> None:
    """The same seed and step draw the same batch whatever was drawn before; another step or seed another."""
    samples = [load_sample(case, tiny_config) for case in read_msd(tiny_msd, str)["fold1"]]
    augment = one_model_for_both_sides(tiny_config)

    images = [draw_batch(samples, augment, 2, seed=s, step=t)[0] for s, t in ((1, 5), (1, 6), (2, 5), (1, 5))]

    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_training_lowers_the_loss(run: Run, recipe: Recipe) -> None:
    """Forty steps on two boxes are enough for a loss well below the first one."""
    schedule = dataclasses.replace(recipe.schedule, steps=40, validate_every=1)

    history = json.loads((run("a", schedule=schedule) / "training.json").read_bytes())["history"]

    first, last = (sum(entry["total"] for entry in part) / 5 for part in (history[:5], history[-5:]))
    assert last < 0.85 * first


def test_a_missing_case_stops_training_before_it_starts(run: Run, tiny_msd: Path) -> None:
    """A data set that is not as the recipe expects leaves no folder of weights behind."""
    (tiny_msd / "labelsTr" / "a2.nii.gz").unlink()

    with pytest.raises(DataError, match=r"labelsTr/a2\.nii\.gz was not found"):
        run("a")
    assert not (tiny_msd.parent / "a").exists()


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    """Four steps up, then half a cosine over eight: a half at its middle, almost 0 at the last step."""
    schedule = Schedule(steps=12, warmup_steps=4, batch_size=1, learning_rate=1.0, weight_decay=0.0, validate_every=1)

    factors = [learning_rate_factor(step, schedule) for step in (0, 1, 2, 3, 4, 6, 8, 10, 12)]

    root = math.sqrt(0.5)
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2, 0])


def test_validation_scores_is_the_mean_over_present_structures(tiny_msd: Path, tiny_config: ServiceConfig) -> None:
    """A network that knows structure 1 and calls structure 2 background scores 1 and 0; absent ones do not count."""
    sample = load_sample(read_msd(tiny_msd, str)["test"][0], tiny_config)
    only_front = Sample(sample.case, sample.image, torch.where(sample.label == 1, 1, 0).to(torch.uint8))
    network = Knows(sample.label == 1, like=sample.image)

    assert validation_scores(network, [sample], tiny_config, ALONE)["dsc"] == 0.5
    assert validation_scores(network, [only_front], tiny_config, ALONE)["dsc"] == 1.0
    assert network.training


class Knows(torch.nn.Module):
    """Recognises the voxels of a mask by their intensities, which all differ."""

    def __init__(self, mask: torch.Tensor, like: torch.Tensor) -> None:
        """Remember the intensities."""
        super().__init__()
        self.intensities = like[mask]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (1, 3, ...) in favour of class 1 where the intensity is known, else of class 0."""
        known = torch.isin(image[:, 0], self.intensities).float()
        return torch.stack([1 - known, known, torch.zeros_like(known)], dim=1)
