import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import load_file

from model_training.config import Recipe, Schedule
from model_training.data.case import DataError
from model_training.data.layouts.msd import read_msd
from model_training.data.transforms import small_affine_about_foreground
from model_training.evaluation.evaluate import measure
from model_training.training.checkpoint import NAME as CHECKPOINT
from model_training.training.parallel import ALONE, Group
from model_training.training.progress import Progress
from model_training.training.train import OutOfMemory, learning_rate_factor, train
from service.bundle.network import build_network
from service.bundle.schema import Network, ServiceConfig
from service.engines.machine import prepare

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


def killed_at(step: int) -> Callable[..., None]:
    """Return a replacement of `Progress.step` that stops the run at a step."""

    def killed(self: Progress, done: int, epoch: float, terms: dict[str, float]) -> None:
        del self, epoch, terms
        if done == step:
            raise KeyboardInterrupt

    return killed


@pytest.mark.gpu
def test_a_gpu_trains_to_the_same_weights_again(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, gpu_device: torch.device
) -> None:
    """Two steps on the device, the losses' sums included, end at the same bits twice, and near the CPU's."""
    prepare(gpu_device)
    schedule = dataclasses.replace(recipe.schedule, steps=2, validate_every=2)
    recipe = dataclasses.replace(recipe, schedule=schedule, ace_after=0)
    for name, device in (("a", gpu_device), ("b", gpu_device), ("cpu", torch.device("cpu"))):
        train(recipe, tiny_msd, tmp_path / name, seed=1, group=Group(0, 1, device))
    first, again, on_cpu = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "cpu"))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.allclose(first[name], on_cpu[name], atol=0.05) for name in first)


def test_the_same_seed_gives_the_same_weights(run: Run) -> None:
    """Order, augmentation and initial weights follow from the seed; another seed gives other weights."""
    first, again, other = (
        load_file(run(name, seed=seed) / "model.safetensors") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_starts_from_the_weights_of_the_seed(run: Run, recipe: Recipe, tiny_config: ServiceConfig) -> None:
    """With a vanishing learning rate the weights stay those drawn from the seed; with the recipe's they do not."""
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
    """The record holds seed, data, loss, and the validation at every second and at the last step."""
    record = json.loads((run("a", seed=7, binning="soft", ace_weight=0.5) / "training.json").read_bytes())

    assert (record["recipe"], record["seed"], record["steps"], record["train_cases"]) == ("tiny", 7, 3, 3)
    assert (record["train_splits"], record["binning"]) == (["fold1"], "soft")
    assert (record["ace_weight"], record["ace_after"]) == (0.5, 1)
    assert (record["device"], record["tf32"]) == ("cpu", False)
    assert [entry["step"] for entry in record["history"]] == [2, 3]
    assert all(0 <= entry[f"validation_{name}"] <= 1 for entry in record["history"] for name in ("dsc", "ace"))


def test_ace_joins_after_its_steps(run: Run) -> None:
    """With two steps of Dice and cross-entropy alone, ACE enters the total from the third step on."""
    history = json.loads((run("a", ace_weight=0.5, ace_after=2) / "training.json").read_bytes())["history"]

    second, third = ((entry["total"], entry["dice_ce"], entry["ace"]) for entry in history)
    assert second[0] == second[1]
    assert third[0] == pytest.approx(third[1] + 0.5 * third[2], rel=1e-5)
    assert third[2] > 0


def test_validation_does_not_change_the_weights(run: Run, recipe: Recipe) -> None:
    """Validating more often gives the same weights."""
    often = dataclasses.replace(recipe.schedule, validate_every=1)

    seldom, watched = (load_file(path / "model.safetensors") for path in (run("a"), run("b", schedule=often)))

    assert all(torch.equal(seldom[name], watched[name]) for name in seldom)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_run_resumes_to_the_same_weights(
    run: Run, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A run that is interrupted at any step and resumed has the weights and history of an uninterrupted one."""
    schedule = dataclasses.replace(recipe.schedule, steps=6, validate_every=2)
    whole = run("whole", schedule=schedule)

    with monkeypatch.context() as until_killed:
        until_killed.setattr(Progress, "step", killed_at(step))
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
    """A checkpoint of another seed and a finished run are refused."""
    often = dataclasses.replace(recipe.schedule, validate_every=1)

    with monkeypatch.context() as until_killed:
        until_killed.setattr(Progress, "step", killed_at(2))
        with pytest.raises(KeyboardInterrupt):
            run("a", schedule=often)

    with pytest.raises(DataError, match="another recipe, seed or data set"):
        run("a", seed=1, schedule=often)
    run("a", schedule=often)
    with pytest.raises(DataError, match="finished run"):
        run("a", schedule=often)


def test_training_lowers_the_loss(run: Run, recipe: Recipe) -> None:
    """Forty steps lower the loss by more than 15 %."""
    schedule = dataclasses.replace(recipe.schedule, steps=40, validate_every=1)

    history = json.loads((run("a", schedule=schedule) / "training.json").read_bytes())["history"]

    first, last = (sum(entry["total"] for entry in part) / 5 for part in (history[:5], history[-5:]))
    assert last < 0.85 * first


def test_a_missing_case_stops_training_before_it_starts(run: Run, tiny_msd: Path) -> None:
    """If a file of the data set is missing, training fails before it writes anything."""
    (tiny_msd / "imagesTr" / "a2.nii.gz").unlink()

    with pytest.raises(DataError, match=r"imagesTr/a2\.nii\.gz was not found"):
        run("a")
    assert not (tiny_msd.parent / "a").exists()


def test_a_run_can_stop_at_a_step_and_resume(run: Run, recipe: Recipe, tiny_msd: Path) -> None:
    """Such a run leaves a checkpoint and no weights; resumed to the end, it reaches the weights of an uninterrupted run."""
    recipe = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, steps=5))
    whole = load_file(run("whole", schedule=recipe.schedule) / "model.safetensors")
    part = tiny_msd.parent / "part"

    train(recipe, tiny_msd, part, seed=0, group=ALONE, until=3)
    assert sorted(path.name for path in part.iterdir()) == [CHECKPOINT, "samples"]
    train(recipe, tiny_msd, part, seed=0, group=ALONE, until=3)
    train(recipe, tiny_msd, part, seed=0, group=ALONE)

    assert sorted(path.name for path in part.iterdir()) == ["model.safetensors", "training.json"]
    weights = load_file(part / "model.safetensors")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_steps_of_dice_and_cross_entropy_belong_to_every_loss(recipe: Recipe, tiny_msd: Path) -> None:
    """A checkpoint from before mL1-ACE joined may be resumed with any loss that joins no earlier, if seed and data are equal."""
    run = tiny_msd.parent / "run"
    train(recipe.with_loss("hard", 1.0, after=2), tiny_msd, run, seed=0, group=ALONE, until=2)

    for other in (recipe.with_loss("soft", 0.3, after=2), recipe.with_loss("soft", 0.0, after=3)):
        train(other, tiny_msd, run, seed=0, group=ALONE, until=2)
    refused = [
        (recipe.with_loss("hard", 1.0, after=1), 0),
        (recipe.with_loss("hard", 1.0, after=2), 1),
        (dataclasses.replace(recipe.with_loss("hard", 1.0, after=2), train_splits=("fold2",)), 0),
        (dataclasses.replace(recipe.with_loss("hard", 1.0, after=2), augmentation=small_affine_about_foreground), 0),
    ]
    for other, seed in refused:
        with pytest.raises(DataError, match="another recipe, seed or data set"):
            train(other, tiny_msd, run, seed=seed, group=ALONE, until=2)


def test_steps_with_ace_belong_to_their_own_loss(recipe: Recipe, tiny_msd: Path) -> None:
    """A checkpoint from after mL1-ACE joined may not be resumed with another binning, weight or first step of it."""
    run = tiny_msd.parent / "run"
    own = recipe.with_loss("hard", 1.0, after=1)
    train(own, tiny_msd, run, seed=0, group=ALONE, until=2)

    for other in (("soft", 1.0, 1), ("hard", 0.5, 1), ("hard", 1.0, 0), ("hard", 1.0, 2)):
        with pytest.raises(DataError, match="another recipe, seed or data set"):
            train(recipe.with_loss(*other[:2], after=other[2]), tiny_msd, run, seed=0, group=ALONE)
    train(own, tiny_msd, run, seed=0, group=ALONE)
    assert (run / "training.json").exists()


def test_weights_are_written_atomically(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while writing its weights stays unfinished; resumed, it writes them from its checkpoint."""

    def dies(tensors: object, path: Path) -> None:
        del tensors
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("model_training.training.train.save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            run("a")
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert not (tmp_path / "a" / "training.json").exists()

    again, whole = (load_file(run(name) / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_memory_that_runs_out_is_explained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The message names device, images, patch size and three remedies; the last checkpoint is kept."""
    with monkeypatch.context() as scarce:
        scarce.setattr(UNet, "forward", fails_in_step(3, error))
        with pytest.raises(OutOfMemory) as raised:
            run("a")

    assert raised.value.__cause__ is error
    message = str(raised.value)
    assert message.startswith("cpu ran out of memory over a step of 2 images in patches of 8 x 8 x 8.")
    for remedy in ("a device with more memory", "torchrun", "-small variant", "last checkpoint is kept"):
        assert remedy in message
    assert (tmp_path / "a" / CHECKPOINT).is_file()
    again, whole = (load_file(run(name) / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory?")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Errors that are not about memory reach the caller unchanged."""
    monkeypatch.setattr(UNet, "forward", fails_in_step(1, error))

    with pytest.raises(type(error)) as raised:
        run("a")

    assert raised.value is error


def fails_in_step(step: int, error: Exception) -> Callable[..., torch.Tensor]:
    """Return a forward pass of UNet that fails in a training step, counted from 1."""
    forward, steps = UNet.forward, [0]

    def fails(self: UNet, x: torch.Tensor) -> torch.Tensor:
        steps[0] += self.training
        if steps[0] == step:
            raise error
        return forward(self, x)

    return fails


def test_a_deeply_supervised_network_is_trained_and_measured(run: Run, recipe: Recipe, tiny_msd: Path) -> None:
    """SegResNetDS trains on two scales with weights 1 and 1/2, and its finest scale is measured."""

    def trained(name: str, scales: int) -> tuple[torch.nn.Module, list[dict[str, float]], ServiceConfig]:
        arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "norm": "instance"}
        shape = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": scales}
        network = Network(name="SegResNetDS", arguments=arguments | shape)
        service = recipe.service.model_copy(update={"network": network})
        schedule = dataclasses.replace(recipe.schedule, steps=2, validate_every=1)
        folder = run(name, service=service, schedule=schedule)
        loaded = build_network(network)
        loaded.load_state_dict(load_file(folder / "model.safetensors"))
        return loaded.eval(), json.loads((folder / "training.json").read_bytes())["history"], service

    _, one, _ = trained("one", 1)
    network, two, service = trained("two", 2)
    measurement = measure(network, service, read_msd(tiny_msd, str)["test"], lambda _: None)

    assert [entry["step"] for entry in two] == [1, 2]
    assert 1.3 < two[0]["dice_ce"] / one[0]["dice_ce"] < 1.7
    assert measurement.scores["dsc"].value is not None


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    """The factor rises over four steps, then falls as half a cosine over eight."""
    schedule = Schedule(steps=12, warmup_steps=4, batch_size=1, learning_rate=1.0, weight_decay=0.0, validate_every=1)

    factors = [learning_rate_factor(step, schedule) for step in (0, 1, 2, 3, 4, 6, 8, 10, 12)]

    root = math.sqrt(0.5)
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2, 0])
