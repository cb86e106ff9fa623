import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from service.bundle.registry import DEFAULT_MODEL
from service.commands.mercure import ModuleSettings, Report, read_settings, run_module
from service.errors import NoDicom, SettingsError, SourceError
from tests.dicom_series import CANARY_ID, CANARY_NAME, series_of_nifti

MERCURE = [sys.executable, "-m", "service", "mercure"]


def task(**settings: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a task.json as mercure's processor writes it for one module."""
    return {
        "id": "b0a8d8a2-0000-11ef-8000-0242ac120002",
        "info": {"action": "both", "uid": "1.2.3", "uid_type": "series", "mrn": CANARY_ID, "acc": "CANARY-ACC"},
        "process": {
            "module_name": "calibrant",
            "module_config": {"docker_tag": "calibrant", "settings": {}},
            "settings": settings,
            "retain_input_images": False,
        },
        "dispatch": {},
    }


@pytest.fixture(name="folders")
def folders_(tmp_path: Path) -> tuple[Path, Path]:
    """Return mercure's two folders; the first only holds the task."""
    inbox, outbox = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    outbox.mkdir()
    (inbox / "task.json").write_text(json.dumps(task()))
    return inbox, outbox


def put(inbox: Path, images: list[Dataset]) -> None:
    """Write images as mercure names them, with their tags beside them."""
    for image in images:
        path = inbox / f"{image.SeriesInstanceUID}#{image.SOPInstanceUID}"
        pydicom.dcmwrite(path.with_name(f"{path.name}.dcm"), image, enforce_file_format=True)
        path.with_name(f"{path.name}.tags").write_text(json.dumps({"PatientName": str(image.PatientName)}))


def test_a_study_is_segmented_as_mercure_runs_it(
    folders: tuple[Path, Path], hippocampus: Path, slices_of: Callable[..., list[Dataset]]
) -> None:
    """A real series becomes SEG, SR and picture; an unsuitable series is listed; nothing names the patient.

    The command runs with mercure's two variables; pydicom finds as many voxels of every structure as the summary
    states, in the study of the images.
    """
    inbox, outbox = folders
    images = series_of_nifti(hippocampus / "imagesTr" / "hippocampus_003.nii.gz")
    put(inbox, images)
    other = slices_of()
    put(inbox, [*other[:2], *other[3:]])
    environment = os.environ | {"MERCURE_IN_DIR": str(inbox), "MERCURE_OUT_DIR": str(outbox)}

    run = subprocess.run(MERCURE, env=environment, capture_output=True, text=True, timeout=280, check=False)

    assert run.returncode == 0, run.stderr
    result = json.loads((outbox / "result.json").read_text())
    assert result["model"].startswith(f"{DEFAULT_MODEL}@")
    (segmented,) = result["segmented"]
    assert segmented["images"] == len(images)
    assert [series["code"] for series in result["refused"]] == ["missing-slices"]
    assert result["__mercure_notification"]["requested"] is True
    for text in (segmented["summary"]["statement"]["text"], result["refused"][0]["detail"], "research use only"):
        assert text in result["__mercure_notification"]["text"]
        assert text in run.stdout
    assert sorted(outbox.glob("*.dcm")) == sorted(outbox / name for name in segmented["files"])
    datasets = {name.partition("#")[2]: pydicom.dcmread(outbox / name) for name in segmented["files"]}
    assert {name: dataset.Modality for name, dataset in datasets.items()} == {
        "seg.dcm": "SEG",
        "sr.dcm": "SR",
        "sc.dcm": "OT",
    }
    for dataset, name in zip(datasets.values(), segmented["files"], strict=True):
        assert (dataset.StudyInstanceUID, dataset.PatientName) == (images[0].StudyInstanceUID, CANARY_NAME)
        assert name.startswith(f"{dataset.SeriesInstanceUID}#")
    assert voxels_of(datasets["seg.dcm"]) == {
        structure["label"]: structure["voxels"] for structure in segmented["summary"]["structures"]
    }
    for text in (run.stdout, run.stderr, (outbox / "result.json").read_text()):
        assert not any(word in text for word in ("CANARY", "CNRY", images[0].SeriesInstanceUID))


def voxels_of(segmentation: Dataset) -> dict[int, int]:
    """Return the number of voxels of each segment, frame by frame (PS3.3 C.8.20)."""
    frames = segmentation.pixel_array.reshape(int(segmentation.NumberOfFrames), -1)
    counts: Counter[int] = Counter()
    for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        counts[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(np.count_nonzero(frame))
    return dict(counts)


def test_nothing_but_refusals_is_a_failure_that_is_told(
    folders: tuple[Path, Path], slices_of: Callable[..., list[Dataset]]
) -> None:
    """If every series is refused, the report has the reasons and the module fails with the first."""
    inbox, outbox = folders
    images = slices_of()
    put(inbox, images[:2] + images[3:])

    with pytest.raises(Exception, match="missing") as caught:
        run_module(inbox, outbox)

    result = json.loads((outbox / "result.json").read_text())
    assert result["segmented"] == []
    assert [series["detail"] for series in result["refused"]] == [str(caught.value)]
    assert [*outbox.iterdir()] == [outbox / "result.json"]


def test_results_of_others_are_no_series(folders: tuple[Path, Path], slices_of: Callable[..., list[Dataset]]) -> None:
    """A folder of segmentations and reports holds no series to segment."""
    inbox, outbox = folders
    images = slices_of()
    for image in images:
        image.Modality = "SEG"
    put(inbox, images)

    with pytest.raises(SourceError, match="no series of CT, MR or PET"):
        run_module(inbox, outbox)

    assert [*outbox.iterdir()] == []


def test_settings_are_those_of_the_task(folders: tuple[Path, Path]) -> None:
    """The task's settings are read, with defaults for the rest."""
    inbox, _ = folders
    assert read_settings(inbox) == ModuleSettings() == ModuleSettings(objects=["seg", "sr", "sc"])

    (inbox / "task.json").write_text(json.dumps(task(model="tiny", objects=["seg", "pdf"])))
    assert read_settings(inbox) == ModuleSettings(model="tiny", objects=["seg", "pdf"])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "task.json has no settings"),
        ("CANARY", "task.json has no settings"),
        ("{}", "task.json has no settings"),
        (json.dumps({"process": [task()["process"]]}), "task.json has no settings"),
        (json.dumps(task(modle="CANARY")), "modle cannot be used"),
        (json.dumps(task(objects=["CANARY"])), "objects.0 cannot be used"),
        (json.dumps(task(objects=[])), "objects cannot be used"),
    ],
    ids=["none", "no JSON", "empty", "list", "misspelt", "unknown object", "no object"],
)
def test_settings_that_cannot_be_used_are_named(folders: tuple[Path, Path], content: str | None, named: str) -> None:
    """A misspelt setting is an error that shows what is expected and does not repeat the value."""
    inbox, _ = folders
    (inbox / "task.json").unlink()
    if content is not None:
        (inbox / "task.json").write_text(content)

    with pytest.raises(SettingsError, match=named) as caught:
        read_settings(inbox)

    assert "CANARY" not in str(caught.value)


def test_somebody_is_notified_when_somebody_should_look() -> None:
    """A withdrawn statement or a refusal requests a notification; an ordinary result does not."""

    def requested(status: str, *refused: dict[str, Any]) -> bool:
        segmented = {"images": 1, "files": [], "summary": {"statement": {"text": "Text.", "status": status}}}
        document = Report("m@0", [segmented], list(refused)).document()
        return bool(document["__mercure_notification"]["requested"])

    refusal = {"images": 1, "code": NoDicom.code, "detail": "None."}
    assert (requested("holds"), requested("withdrawn"), requested("holds", refusal)) == (False, True, True)
