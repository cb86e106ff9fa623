import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from service.bundle.description import describe_bundle
from service.bundle.proof import prove

WEIGHTS = Path("models/model.safetensors")

Reseal = Callable[[Path], str]


def copies(bundle: Path, *names: str) -> list[Path]:
    """Return copies of a bundle in folders of these names."""
    roots = [bundle.parent / name for name in names]
    for root in roots:
        shutil.copytree(bundle, root)
    return roots


def test_f9_a_bundle_is_loaded_once_before_it_counts(tiny_bundle: Path, reseal: Reseal) -> None:
    """A header of 2^62 bytes, a pickle, weights of another network and NaN each have their reason; the good one has none."""
    good, huge, pickled, other, nan = copies(tiny_bundle, "good", "huge", "pickled", "other", "nan")
    (huge / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    torch.save({"a": torch.zeros(1)}, pickled / WEIGHTS)
    tensors = load_file(tiny_bundle / WEIGHTS)
    save_file({name: torch.zeros(2) for name in tensors}, other / WEIGHTS)
    save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, nan / WEIGHTS)
    bundles = [huge, pickled, other, nan]
    for root in bundles:
        reseal(root)

    why = prove(describe_bundle(root) for root in [*bundles, good])

    assert list(why) == bundles
    assert "no file of safetensors" in why[huge]
    assert "no file of safetensors" in why[pickled]
    assert "tensors differ" in why[other]
    assert "NaN" in why[nan]


def test_f9_a_bundle_that_takes_too_long_does_not_end_the_proof(tiny_bundle: Path) -> None:
    """It has its reason; the next one has a process of its own. Nothing is started for nothing."""
    description = describe_bundle(tiny_bundle)

    why = prove([description, replace(description, root=tiny_bundle.parent / "other")], seconds=0.01)

    assert len(why) == 2
    assert all("died, or took longer" in reason for reason in why.values())
    assert prove([]) == {}
