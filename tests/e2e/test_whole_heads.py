"""Whole heads as they come, by the shipped model: the benchmark's limits, and the card's figures on a few scans."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_training.locator.evaluate import CONTAINED, evaluate_locator, found_in_nothing
from model_training.locator.heads import read_heads
from model_training.recipes.hippocampus import LOCATOR
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.registry import SHIPPED
from service.bundle.schema import Locator
from service.pipeline.locate import Boxes, locate
from service.volume import Volume

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="bundle", scope="module")
def _bundle() -> LoadedBundle:
    return load_bundle(SHIPPED / "hippocampus-mr", torch.device("cpu"))


@pytest.mark.timeout(1200)
def test_both_hippocampi_are_found_however_a_head_is_stored(whole_head: Path) -> None:
    """Within 5 mm and 15 % of the unmodified head; in scans without hippocampi nothing is pasted. Time is not judged here."""
    pytest.importorskip("nilearn")
    command = [sys.executable, "benchmarks/whole_heads.py", "--threads", "1", "--locate-s", "60", "--each-once"]
    environment = os.environ | {"CALIBRANT_DATA": str(whole_head.parent)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "\n0 limits exceeded" in found.stdout
    assert found.stdout.count("No hippocampus found") >= 8


def test_the_card_says_what_held_out_heads_say(bundle: LoadedBundle, brain_label_maps: Path) -> None:
    """98 of 100 boxes hold their structure, none is given in nothing; eight fresh scans of each sort agree."""
    config, card = bundle.description.config, bundle.description.card
    locator, network = config.locator, bundle.locator
    assert isinstance(locator, Locator)
    assert network is not None
    assert card.locating is not None
    assert (card.locating.scans, card.locating.empty_scans) == (100, 100)
    assert card.locating.boxes_hold >= 98
    assert card.locating.found_in_empty == 0

    def boxes(volume: Volume) -> Boxes:
        return locate(network, volume, locator)

    _, held_out = LOCATOR.split(read_heads(brain_label_maps))
    assert len(held_out) == card.locating.heads
    found = evaluate_locator(boxes, locator, held_out, n=8, seed=card.locating.seed)
    assert sum(min(one.contained) >= CONTAINED for one in found) >= 7
    assert not any(found_in_nothing(boxes, locator, held_out, n=4, seed=card.locating.seed).values())
