"""docs/library.md: every block of the page runs."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
IGNITE = Path(sys.prefix) / "ignite"
"""Where scripts/setup puts Ignite: beside site-packages, or every `import monai` of every process would load it."""

BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


class DeepSupervision(nn.Module):
    """nnU-Net's DeepSupervisionWrapper: the weighted sum of a loss over scales."""

    def __init__(self, loss: nn.Module, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, logits: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Return the sum over scales."""
        terms = [w * self.loss(x, y) for w, x, y in zip(self.weights, logits, targets, strict=True)]
        return torch.stack(terms).sum()


class Trainer:
    """The parts of nnU-Net 2.8.1's nnUNetTrainer that the page's class uses."""

    def __init__(self, *, deep: bool, regions: bool = False, ignore: int | None = None) -> None:
        self.enable_deep_supervision = deep
        self.label_manager = types.SimpleNamespace(has_regions=regions, ignore_label=ignore)

    def _build_loss(self) -> nn.Module:
        class CrossEntropy(nn.Module):
            def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                return nn.functional.cross_entropy(logits, target[:, 0].long())

        return DeepSupervision(CrossEntropy(), (2 / 3, 1 / 3)) if self.enable_deep_supervision else CrossEntropy()


@pytest.fixture(name="page", scope="module")
def page_() -> dict[str, Any]:
    """Return the names that the page's blocks leave behind, each run after the one before; MONAI's has its own test."""
    module = types.ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    module.nnUNetTrainer = Trainer  # type: ignore[attr-defined]
    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"]
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        for number, block in enumerate(BLOCKS):
            if "SupervisedTrainer" in block:
                continue
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), scope)  # noqa: S102 - our own page
    return scope


def test_the_page_has_its_four_blocks() -> None:
    """Metrics, a plain loop, a MONAI trainer and an nnU-Net trainer."""
    assert len(BLOCKS) == 4


def test_the_loop_trains(page: dict[str, Any]) -> None:
    """Every parameter of the network got a gradient that is finite."""
    for parameter in page["network"].parameters():
        assert torch.isfinite(parameter.grad).all()


def test_the_monai_trainer_trains(tmp_path: Path) -> None:
    """The block runs after the plain loop, in a process that has Ignite, and prints the loss of its one step."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(BLOCKS[1:3]))
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(IGNITE)])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.split()
    assert 0 < float(last) < 5


@pytest.mark.parametrize("deep", [False, True])
def test_the_nnunet_trainer_adds_ace_at_each_scale(deep: bool, page: dict[str, Any]) -> None:  # noqa: FBT001
    """Its loss is nnU-Net's own plus mL1-ACE, weighted alike over the scales."""
    logits = [torch.randn(2, 3, n, n, n) for n in (8, 4)]
    targets = [torch.randint(0, 3, (2, 1, n, n, n)).float() for n in (8, 4)]
    plain, ours = Trainer(deep=deep)._build_loss(), page["nnUNetTrainerACE"](deep=deep)._build_loss()
    ace = page["SoftL1ACELoss"](softmax=True, to_onehot_y=True)

    if deep:
        extra = sum(w * ace(x, y) for w, x, y in zip((2 / 3, 1 / 3), logits, targets, strict=True))
        assert float(ours(logits, targets) - plain(logits, targets)) == pytest.approx(float(extra), abs=1e-5)
    else:
        found = float(ours(logits[0], targets[0]) - plain(logits[0], targets[0]))
        assert found == pytest.approx(float(ace(logits[0], targets[0])), abs=1e-5)


def test_the_nnunet_trainer_takes_an_ignore_label(page: dict[str, Any]) -> None:
    """Voxels of the ignore label have no gradient from mL1-ACE."""
    loss = page["nnUNetTrainerACE"](deep=False, ignore=2)._build_loss()
    logits = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    target = torch.full((1, 1, 4, 4, 4), 2.0)
    target[..., 0] = 1
    loss.ace(logits, target).backward()
    assert logits.grad is not None
    assert float(logits.grad[..., 1:].abs().max()) == 0 < float(logits.grad[..., 0].abs().max())


def test_regions_are_refused(page: dict[str, Any]) -> None:
    """Regions overlap: their loss is another one."""
    with pytest.raises(RuntimeError, match="regions"):
        page["nnUNetTrainerACE"](deep=False, regions=True)._build_loss()


def test_the_shell_block_names_a_folder_that_is_there() -> None:
    """What is installed from the clone exists in it."""
    folders = re.findall(r"pip install (\./\S+)", PAGE.read_text())
    assert folders
    for folder in folders:
        assert (PAGE.parents[1] / folder / "pyproject.toml").is_file()
