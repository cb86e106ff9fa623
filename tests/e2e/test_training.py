"""Training on real scans survives SIGKILL: the run goes on from its checkpoint to the same weights."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = """
import dataclasses, sys
from pathlib import Path
from model_training.training.parallel import ALONE
from model_training.training.progress import Progress
from model_training.recipes.hippocampus import HIPPOCAMPUS
from model_training.training.train import train
from service.bundle.schema import Network

data, run = map(Path, sys.argv[1:])
network = {**HIPPOCAMPUS.service.network.arguments, "channels": [4, 8], "strides": [2], "num_res_units": 0}
recipe = dataclasses.replace(
    HIPPOCAMPUS,
    service=HIPPOCAMPUS.service.model_copy(update={"network": Network(name="UNet", arguments=network)}),
    train_splits=("fold1",),
    validation_split="fold2",
    ace_after=20,
    schedule=dataclasses.replace(HIPPOCAMPUS.schedule, steps=40, warmup_steps=5, validate_every=10),
)
with Progress(40) as progress:
    train(recipe, data, run, seed=0, group=ALONE, watchers=[progress])
"""


def start(data: Path, run: Path) -> "subprocess.Popen[bytes]":
    """Return the process of a run of forty steps with a small network."""
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(run)], stderr=subprocess.DEVNULL)


def test_a_run_that_is_killed_ends_with_the_same_weights(hippocampus: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, and again after the next: weights and validation equal an undisturbed run's."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(hippocampus, whole).wait(120) == 0

    checkpoint = killed / "checkpoint.safetensors"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start(hippocampus, killed)
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert not (killed / "model.safetensors").exists()
    assert start(hippocampus, killed).wait(120) == 0

    first, second = (load_file(run / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [json.loads((run / "training.json").read_bytes()) for run in (whole, killed)]
    assert records[0]["history"] == records[1]["history"]
