import os
import sys
from pathlib import Path

import pytest
import torch

from model_training.data import samples as samples_module
from model_training.data.case import Case, DataError, Sample, load_sample
from model_training.data.layouts.msd import read_msd
from model_training.data.samples import stored_samples
from service.bundle.schema import ServiceConfig


def test_stored_samples_are_those_that_are_computed(tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """Values and types come back from the files to the last bit, in the order of the cases."""
    cases = read_msd(tiny_msd, str)["fold1"]

    stored = stored_samples(cases, tiny_config, tmp_path / "samples")

    for case, sample in zip(cases, stored, strict=True):
        expected = load_sample(case, tiny_config)
        assert sample.case == case
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.label, expected.label)
        assert (sample.image.dtype, sample.label.dtype) == (torch.float32, torch.uint8)


def test_what_is_stored_is_not_computed_again(
    tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first case, only the others are computed; a partly written file is computed again."""
    cases = read_msd(tiny_msd, str)["fold1"]
    computed: list[str] = []

    def load(case: Case, config: ServiceConfig) -> Sample:
        computed.append(case.name)
        return load_sample(case, config)

    monkeypatch.setattr(samples_module, "load_sample", load)
    stored_samples(cases[:1], tiny_config, tmp_path)
    (tmp_path / "a2.image.part.npy").write_bytes(b"half")

    for _ in range(2):
        stored_samples(cases, tiny_config, tmp_path)

    assert computed == ["a1", "a2", "b1"]
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        f"{name}.{content}.npy" for name in ("a1", "a2", "b1") for content in ("image", "label")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where memory is mapped from")
def test_samples_lie_in_their_files_not_in_memory(tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """The tensor's memory is a mapping of its file."""
    (sample,) = stored_samples(read_msd(tiny_msd, str)["test"], tiny_config, tmp_path)

    assert mapped_from(sample.image.data_ptr()) == tmp_path / "d1.image.npy"
    assert mapped_from(sample.label.data_ptr()) == tmp_path / "d1.label.npy"


def test_writing_to_a_sample_leaves_its_file(tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """Writing to a sample in place does not change the stored one."""
    case = read_msd(tiny_msd, str)["test"]
    (sample,) = stored_samples(case, tiny_config, tmp_path)
    expected = sample.image.clone()

    sample.image.zero_()

    (again,) = stored_samples(case, tiny_config, tmp_path)
    assert torch.equal(again.image, expected)


def test_a_file_that_cannot_be_used_is_named(tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """Every case is read before training starts, so a damaged one is reported at once."""
    (tiny_msd / "imagesTr" / "b1.nii.gz").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"b1\.nii\.gz cannot be read"):
        stored_samples(read_msd(tiny_msd, str)["fold1"], tiny_config, tmp_path)


def mapped_from(address: int) -> Path | None:
    """Return the file whose mapping in this process holds the address."""
    for line in Path(f"/proc/{os.getpid()}/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return Path(path[0]) if path else None
    return None
