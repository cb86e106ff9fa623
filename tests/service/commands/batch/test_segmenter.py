from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.bundle.registry import DEFAULT_MODEL
from service.commands.batch.segmenter import Local, Remote, Segmenter
from service.commands.predict import predict_here
from service.errors import (
    BundleError,
    ConstantVolume,
    DeviceUnavailable,
    ModelNotFound,
    ServerProblem,
    ServerUnreachable,
)


class SegmenterContract:
    """Contract of every segmenter; a subclass provides the fixture `segmenter`."""

    def test_it_computes_what_predict_does(self, segmenter: Segmenter, hippocampus: Path, tmp_path: Path) -> None:
        """Mask, confidence and summary of a real scan are those of `calibrant predict`, byte for byte."""
        scan = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
        shown: list[str] = []
        with segmenter:
            segmented = segmenter.segment(scan, "contract", shown.append)
        expected = predict_here(scan, tmp_path, None)

        assert segmenter.identity == segmented.summary.model
        assert segmenter.identity.startswith(f"{DEFAULT_MODEL}@")
        assert (segmented.mask, segmented.confidence) == (expected.mask.read_bytes(), expected.confidence.read_bytes())
        assert segmented.summary.model_dump_json(indent=2) + "\n" == expected.summary.read_text()
        assert shown


class TestLocal(SegmenterContract):
    """A process on this machine."""

    @pytest.fixture
    def segmenter(self) -> Segmenter:
        """Return a process of our own."""
        return Local(None)

    def test_a_bad_scan_is_an_error_and_the_next_one_is_done(
        self, tmp_path: Path, write_nifti: Callable[..., None], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process that met it computes on."""
        monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
        write_nifti(tmp_path / "flat.nii", np.full((9, 8, 7), 42, np.int16))
        write_nifti(tmp_path / "good.nii", np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32))
        with Local("tiny") as segmenter:
            with pytest.raises(ConstantVolume):
                segmenter.segment(tmp_path / "flat.nii", "k", lambda _: None)
            assert segmenter.segment(tmp_path / "good.nii", "k", lambda _: None).mask.startswith(b"\x1f\x8b")

    def test_a_gpu_that_is_not_there_is_said_before_any_case_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No machine has so many."""
        monkeypatch.setenv("CALIBRANT_DEVICE", "cuda:99")
        with pytest.raises(DeviceUnavailable, match="cuda:99 cannot be used"), Local(None):
            pytest.fail("the batch began")

    def test_a_model_that_is_not_there_is_said(self) -> None:
        """Before anything is started."""
        with pytest.raises(ModelNotFound, match=DEFAULT_MODEL):
            Local("nobody")


class TestRemote(SegmenterContract):
    """A running service."""

    @pytest.fixture
    def segmenter(self, server_url: str) -> Segmenter:
        """Return the service that all tests share."""
        return Remote(server_url, None)

    def test_a_key_is_one_job(self, server_url: str, http: httpx.Client, hippocampus: Path) -> None:
        """Segmenting twice with one key makes one job, in the background."""
        scan = hippocampus / "imagesTr" / "hippocampus_004.nii.gz"
        with Remote(server_url, DEFAULT_MODEL) as segmenter:
            masks = {segmenter.segment(scan, "one-key", lambda _: None).mask for _ in range(2)}
            identity = segmenter.identity
        jobs = [
            job for job in http.get("/v1/segmentations?limit=200").json()["jobs"] if job["priority"] == "background"
        ]

        assert len(masks) == 1
        assert len([job for job in jobs if job["scan"] == jobs[0]["scan"]]) == 1
        assert jobs[0]["model"] == identity

    def test_a_bad_scan_is_the_service_s_problem_document(self, server_url: str, tmp_path: Path) -> None:
        """Its type says which."""
        (tmp_path / "s.nii").write_bytes(b"no scan")
        with Remote(server_url, None) as segmenter, pytest.raises(ServerProblem) as caught:
            segmenter.segment(tmp_path / "s.nii", "bad", lambda _: None)

        assert caught.value.problem_type == "/problems/unrecognised-format"

    @pytest.mark.parametrize("model", ["nobody", f"{DEFAULT_MODEL}@{'0' * 64}"])
    def test_a_model_that_is_not_there_is_said(self, server_url: str, model: str) -> None:
        """An unknown name, or the name with another hash; the installed ones are named."""
        with pytest.raises(ModelNotFound, match=DEFAULT_MODEL):
            Remote(server_url, model)

    def test_a_model_that_cannot_be_served_says_why(self, server_url: str) -> None:
        """The service's own reason."""
        with pytest.raises(BundleError, match="cannot be served there: No readable MANIFEST"):
            Remote(server_url, "broken")

    def test_nobody_listens(self) -> None:
        """Said before the first scan is read."""
        with pytest.raises(ServerUnreachable):
            Remote("http://127.0.0.1:1", None)
