"""Several processes train as one would: on the CPU, over gloo, started by torchrun."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_training.config import Recipe
from model_training.data.case import DataError
from model_training.training.parallel import ALONE, Group, process_group
from model_training.training.train import train
from service.errors import CalibrantError, DeviceUnavailable, SettingsError

TOLERANCE = 0.02
"""Of weights, relative: bfloat16 rounds a batch of one otherwise than a batch of two, which made 0.002 in six steps."""

SCRIPT = """
import dataclasses, sys
from pathlib import Path
from model_training.training import train as module
from model_training.config import Schedule
from model_training.data.layouts.msd import read_msd
from model_training.data.transforms import one_model_for_both_sides
from model_training.training.parallel import process_group
from model_training.recipes.hippocampus import HIPPOCAMPUS
from service.bundle.schema import ServiceConfig

def only_the_first_writes(*_):
    raise AssertionError("a second process writes")

service, schedule, data, run = sys.argv[1:]
recipe = dataclasses.replace(
    HIPPOCAMPUS,
    service=ServiceConfig.model_validate_json(service),
    cases=lambda root: read_msd(root, str),
    augmentation=one_model_for_both_sides,
    train_splits=("fold1",),
    validation_split="fold1",
    binning="hard",
    ace_weight=1.0,
    ace_after=1,
    schedule=eval(schedule),
)
with process_group("cpu") as group:
    assert group.size == 2
    assert group.gathered(f"of {group.rank}") == ["of 0", "of 1"]
    if group.rank:
        module.save_checkpoint = module._write_run = only_the_first_writes
    module.train(recipe, Path(data), Path(run), seed=0, group=group)
"""
"""Trains the recipe of the tests in the processes that torchrun starts."""


def test_two_processes_train_to_the_weights_of_one(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """Two processes that share each batch of two reach the weights of one, up to rounding; batches of one do not."""
    # Three cases to look at: two for the one process, one for the other.
    recipe = dataclasses.replace(recipe, validation_split="fold1")
    schedule = dataclasses.replace(recipe.schedule, steps=6)
    half = dataclasses.replace(schedule, batch_size=1)
    train(dataclasses.replace(recipe, schedule=schedule), tiny_msd, tmp_path / "one", seed=0, group=ALONE)
    train(dataclasses.replace(recipe, schedule=half), tiny_msd, tmp_path / "half", seed=0, group=ALONE)

    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [recipe.service.model_dump_json(), repr(schedule), str(tiny_msd), str(tmp_path / "two")]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "script.py"), *arguments], capture_output=True, text=True, check=False, timeout=240
    )

    # Not its exit code: on a busy machine torchrun itself may abort after its processes have ended well.
    assert (tmp_path / "two" / "training.json").exists(), done.stderr
    one, two, other = (tmp_path / name for name in ("one", "two", "half"))
    assert distance(two, one) < TOLERANCE
    assert distance(other, one) > 5 * TOLERANCE
    assert sorted(path.name for path in two.iterdir()) == ["model.safetensors", "training.json"]
    first, shared, halved = (json.loads((run / "training.json").read_bytes()) for run in (one, two, other))
    assert {**shared, "history": None, "seconds": None} == {**first, "history": None, "seconds": None}
    assert [entry["step"] for entry in shared["history"]] == [2, 4, 6]
    for entry, expected in zip(shared["history"], first["history"], strict=True):
        assert entry == pytest.approx(expected, abs=0.02)
    assert shared["history"][0] == pytest.approx(first["history"][0], abs=1e-3)
    assert halved["history"][0] != pytest.approx(first["history"][0], abs=0.02)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """Two images cannot be shared by three processes; the message says what to change."""
    three = Group(rank=0, size=3, device=torch.device("cpu"))

    with pytest.raises(DataError, match="2 images cannot be shared by 3 processes evenly"):
        train(recipe, tiny_msd, tmp_path / "run", seed=0, group=three)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_single_process_does_not_wait(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A single process leads, never waits, and gathers only its own values."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with process_group("cpu") as group:
        assert group == ALONE
        assert group.leads
        assert group.gathered(3) == [3]
        group.wait()
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [("cuda:99", DeviceUnavailable, "^cuda:99 cannot be used"), ("quantum", SettingsError, "does not name devices")],
)
@pytest.mark.parametrize("size", ["1", "2"])
def test_a_device_that_is_missing_is_said_to_be(
    name: str, error: type[CalibrantError], why: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence before anything begins, with one process and with several."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": size, "LOCAL_RANK": "99"}.items():
        monkeypatch.setenv(variable, value)

    with pytest.raises(error, match=why), process_group(name):
        pytest.fail("it began")


def distance(run: Path, other: Path) -> float:
    """Return the L2 distance of two runs' weights over their norm.

    Biases are left out: those before an instance norm change nothing, so that their gradients are rounding alone.
    """
    weights, others = (load_file(path / "model.safetensors") for path in (run, other))
    names = [name for name in weights if name.endswith("weight")]
    one, two = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (weights, others))
    return float((one - two).norm() / two.norm())
