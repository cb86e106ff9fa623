import httpx
import pytest

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED


def test_the_list_holds_what_is_served_and_what_is_broken(http: httpx.Client) -> None:
    """A folder that is no bundle is listed with the reason why, and does not keep the others from serving."""
    answer = http.get("/v1/models").json()

    assert answer["default"] == "hippocampus-mr"
    found = {model["name"]: model for model in answer["models"]}
    assert {name: model["ready"] for name, model in found.items()} == {"hippocampus-mr": True, "broken": False}
    assert found["broken"]["why_not"].startswith("No readable MANIFEST.json was found.")
    assert found["broken"]["statement"] is None
    assert found["hippocampus-mr"]["why_not"] is None


def test_a_model_says_what_it_was_made_for(http: httpx.Client) -> None:
    """Identity, labels, modality and voxel size are those of the bundle on disk."""
    bundle = describe_bundle(SHIPPED / "hippocampus-mr")

    model = http.get("/v1/models/hippocampus-mr").json()

    assert model["identity"] == bundle.identity
    assert model["version"] == bundle.config.version
    assert model["modality"] == "MR"
    assert model["labels"] == {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}
    assert model["spacing_mm"] == list(bundle.config.spacing_mm)


def test_a_model_carries_the_statement_of_its_card(http: httpx.Client) -> None:
    """The statement names its population, its date and its figures with intervals."""
    card = describe_bundle(SHIPPED / "hippocampus-mr").card

    statement = http.get("/v1/models/hippocampus-mr").json()["statement"]

    assert statement["status"] == "holds"
    assert statement["basis"] == "calibration card"
    assert (statement["n_persons"], statement["n_cases"]) == (card.population.n_persons, card.population.n_cases)
    assert statement["date"] == card.date.isoformat()
    assert statement["figures"]["dsc"] == card.measurements[0].scores["dsc"].model_dump()
    assert statement["figures"]["dsc"]["low"] <= statement["figures"]["dsc"]["value"]


@pytest.mark.parametrize("name", ["unknown", "broken", "hippocampus-mr@0", "%2e%2e"])
def test_a_model_that_is_not_served_is_404(http: httpx.Client, name: str) -> None:
    """The answer lists what is installed instead."""
    answer = http.get(f"/v1/models/{name}")

    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/model-not-found"
    assert answer.json()["detail"] == "The requested model is not installed. Installed: hippocampus-mr."


@pytest.mark.parametrize("model", ["no-such-model", "../hippocampus-mr", "", "broken"])
def test_an_unknown_model_is_404_before_the_scan_is_read(http: httpx.Client, model: str) -> None:
    """The answer names what is installed, not what was asked for; a broken bundle cannot be asked for."""
    answer = http.post("/v1/segmentations", content=b"not even a scan", params={"model": model})

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "/problems/model-not-found",
        "title": "There is no such model",
        "status": 404,
        "detail": "The requested model is not installed. Installed: hippocampus-mr.",
    }
