from pathlib import Path

import pytest
import torch
from torch import nn

from model_training.data.case import DataError
from model_training.training.checkpoint import NAME, TrainingPosition, load_checkpoint, save_checkpoint


def started() -> tuple[nn.Linear, torch.optim.Optimizer]:
    """Return a small network after one step, and its optimiser."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return network, optimiser


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Weights, moments and position are restored bit for bit."""
    network, optimiser = started()
    save_checkpoint(tmp_path, network, optimiser, TrainingPosition(7, 1.5, [{"step": 7, "dsc": 0.1}]), "run")
    other = nn.Linear(3, 2)
    moments = torch.optim.AdamW(other.parameters(), lr=0.1)

    position = load_checkpoint(tmp_path, other, moments, lambda _step: "run")

    assert position == TrainingPosition(7, 1.5, [{"step": 7, "dsc": 0.1}])
    assert torch.equal(other.weight, network.weight)
    saved, loaded = optimiser.state_dict()["state"], moments.state_dict()["state"]
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[i][name], loaded[i][name]) for i in saved for name in saved[i])
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_without_a_checkpoint_a_run_starts_at_0(tmp_path: Path) -> None:
    """Without a checkpoint the position is 0 and the weights are unchanged."""
    network, optimiser = started()
    weight = network.weight.clone()
    assert load_checkpoint(tmp_path, network, optimiser, lambda _step: "run") == TrainingPosition(0, 0.0, [])
    assert torch.equal(network.weight, weight)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    """The message names the file and the remedy."""
    network, optimiser = started()
    save_checkpoint(tmp_path, network, optimiser, TrainingPosition(), "run")
    with pytest.raises(DataError, match="another recipe, seed or data set"):
        load_checkpoint(tmp_path, network, optimiser, lambda _step: "other run")
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path, network, optimiser, lambda _step: "run")


def test_the_identity_is_evaluated_at_the_checkpoints_step(tmp_path: Path) -> None:
    """The identity is evaluated at the checkpoint's step, since runs may share their first steps."""
    network, optimiser = started()
    save_checkpoint(tmp_path, network, optimiser, TrainingPosition(7), "shared until 7")

    def identity(step: int) -> str:
        return "shared until 7" if step == 7 else "own"

    assert load_checkpoint(tmp_path, network, optimiser, identity).step == 7


def test_a_checkpoint_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while writing leaves the previous checkpoint intact."""
    network, optimiser = started()
    save_checkpoint(tmp_path, network, optimiser, TrainingPosition(1), "run")

    def dies(tensors: object, path: Path, **_: object) -> None:
        del tensors
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("model_training.training.checkpoint.save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, network, optimiser, TrainingPosition(2), "run")

    assert load_checkpoint(tmp_path, network, optimiser, lambda _step: "run").step == 1
