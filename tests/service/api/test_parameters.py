from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from service.api.parameters import suggestion

Ask = Callable[..., httpx.Response]


@pytest.mark.parametrize(
    ("method", "url", "says"),
    [
        ("POST", "/v1/segmentations?modell=x", "Did you mean model?"),
        ("POST", "/v1/segmentations?MODEL=x", "Did you mean model?"),
        ("POST", "/v1/segmentations?model=x&output=mask", "Did you mean outputs?"),
        ("GET", "/v1/segmentations?page=2", "Expected cursor, limit, state."),
        ("GET", "/v1/segmentations/x?verbose=1", "This route has none"),
        ("HEAD", "/v1/segmentations?page=2", ""),
        ("GET", "/v2/health/ready?x", "This route has none"),
        ("POST", "/v1/scans?serie=1.2", "Did you mean series?"),
        ("POST", "/v1/segmentations?model=x&model=y", "model was given more than once"),
    ],
)
def test_f15_an_unknown_parameter_is_refused_with_the_nearest(
    ask: Ask, locked: FastAPI, lab_key: str, method: str, url: str, says: str
) -> None:
    """A misspelt parameter would be ignored and the default be used; what was sent is not repeated."""
    answer = ask(locked, method, url, headers={"Authorization": f"Bearer {lab_key}"})

    assert answer.status_code == 422
    assert says in answer.text
    assert "modell" not in answer.text
    if method != "HEAD":
        assert answer.json()["type"] == "/problems/invalid-request"


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/v1/segmentations/x/dicom.zip?objects=seg&objects=sr"),
        ("GET", "/v1/models"),
        ("GET", "/monailabel/info/?whatever=1"),
        ("GET", "/login?next=/docs"),
    ],
)
def test_known_ones_pass_and_other_clients_send_what_they_like(
    ask: Ask, locked: FastAPI, lab_key: str, method: str, url: str
) -> None:
    """A list may be repeated; MONAI Label's routes and pages take anything."""
    assert ask(locked, method, url, headers={"Authorization": f"Bearer {lab_key}"}).status_code != 422


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "nonesuch"}, "?model=..."),
        ({"modell": "nonesuch"}, "Did you mean model?"),
        ({"file": "text"}, "holds no file"),
        ({"zzz": "1"}, "Expected accept,"),
    ],
)
def test_f15_a_form_field_that_would_be_ignored_is_refused(
    http: httpx.Client, nifti: Callable[..., bytes], fields: dict[str, str], says: str
) -> None:
    """`-F model=nonesuch` is no job of the default model."""
    answer = http.post("/v1/segmentations", data=fields, files={"file": ("scan.nii", nifti())})

    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert "nonesuch" not in answer.text


def test_the_nearest_name_is_suggested() -> None:
    """A name that resembles none gets all of them."""
    assert suggestion("Accpt", ["accept", "model"]) == "Did you mean accept?"
    assert suggestion("q", ["b", "a"]) == "Expected a, b."
