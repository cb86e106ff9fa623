from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.models import _drawn, _reliability
from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED, Registry
from service.errors import NotAcceptable, SettingsError
from service.storage.keys import add_key
from service.storage.local import StateDirectory
from tests.service.api.conftest import Guarded


def test_the_list_holds_what_is_served_and_what_is_broken(http: httpx.Client) -> None:
    """A folder that is not a bundle is listed with the reason, and the other models are served."""
    answer = http.get("/v1/models").json()

    assert answer["default"] == "hippocampus-mr"
    models = {model["name"]: model for model in answer["models"]}
    assert {name: model["ready"] for name, model in models.items()} == {"hippocampus-mr": True, "broken": False}
    assert models["broken"]["why_not"].startswith("No readable MANIFEST.json was found.")
    assert models["broken"]["statement"] is None
    assert models["hippocampus-mr"]["why_not"] is None


def test_a_model_says_what_it_was_made_for(http: httpx.Client) -> None:
    """Identity, labels, modality and voxel spacing are those of the bundle on disk."""
    bundle = describe_bundle(SHIPPED / "hippocampus-mr")

    model = http.get("/v1/models/hippocampus-mr").json()

    assert model["identity"] == bundle.identity
    assert model["version"] == bundle.config.version
    assert model["modality"] == "MR"
    assert model["labels"] == {str(label.value): label.name for label in bundle.config.every_label}
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
    """The answer lists the installed models."""
    answer = http.get(f"/v1/models/{name}")

    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/model-not-found"
    assert answer.json()["detail"] == "The requested model is not installed. Installed: hippocampus-mr."


@pytest.mark.parametrize("model", ["no-such-model", "../hippocampus-mr", "", "broken"])
def test_an_unknown_model_is_404_before_the_scan_is_read(http: httpx.Client, model: str) -> None:
    """The answer lists the installed models and does not repeat the name; a broken bundle counts as unknown."""
    answer = http.post("/v1/segmentations", content=b"not even a scan", params={"model": model})

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "/problems/model-not-found",
        "title": "There is no such model",
        "status": 404,
        "detail": "The requested model is not installed. Installed: hippocampus-mr.",
    }


def test_a_model_carries_its_labels_and_its_card(http: httpx.Client) -> None:
    """A single model has colours, SNOMED CT codes and the card's figures without the sums; the list omits the card."""
    card = describe_bundle(SHIPPED / "hippocampus-mr").card

    model = http.get("/v1/models/hippocampus-mr").json()

    assert model["label_details"][1] == {
        "value": 1,
        "name": "anterior hippocampus",
        "color": [230, 159, 0],
        "code": "SCT:5366008",
        "modifiers": ["SCT:255549009"],
    }
    assert model["card"]["n_persons"] == card.population.n_persons
    assert model["card"]["bin_rule"] == card.bin_rule
    measured = model["card"]["measurements"][0]
    expected = card.measurements[0].class_scores["posterior hippocampus"]["dsc"].model_dump()
    assert measured["class_scores"]["posterior hippocampus"]["dsc"] == expected
    assert "cases" not in measured
    listed = {listed_model["name"]: listed_model for listed_model in http.get("/v1/models").json()["models"]}
    assert listed["hippocampus-mr"]["card"] is None


def test_the_reliability_is_that_of_the_cards_cases(http: httpx.Client) -> None:
    """The JSON holds the pooled sums of all cases and names their population."""
    card = describe_bundle(SHIPPED / "hippocampus-mr").card
    link = http.get("/v1/models/hippocampus-mr").json()["reliability"]

    reliability = http.get(link).json()

    assert (reliability["n_cases"], reliability["n_persons"]) == (card.population.n_cases, card.population.n_persons)
    assert card.population.dataset in reliability["source"]
    for row, structure in enumerate(reliability["structures"], start=1):
        assert sum(structure["count"]) == sum(sum(case.count[row]) for case in card.measurements[0].cases)


@pytest.mark.parametrize(
    ("options", "media_type", "start"),
    [
        ({"headers": {"Accept": "image/png"}}, "image/png", b"\x89PNG"),
        ({"params": {"format": "svg"}}, "image/svg+xml", b"<?xml"),
        ({"headers": {"Accept": "*/*"}}, "application/json", b'{"source"'),
    ],
    ids=["PNG", "SVG", "JSON"],
)
def test_the_reliability_is_drawn_as_it_is_wanted(
    http: httpx.Client, options: dict[str, Any], media_type: str, start: bytes
) -> None:
    """Accept or ?format= selects PNG or SVG instead of JSON; a matching ETag gives 304."""
    answer = http.get("/v1/models/hippocampus-mr/reliability", **options)

    assert answer.headers["content-type"] == media_type
    assert answer.headers["vary"] == "Accept"
    assert answer.content.startswith(start)
    headers = options.get("headers", {}) | {"If-None-Match": answer.headers["etag"]}
    again = http.get("/v1/models/hippocampus-mr/reliability", params=options.get("params"), headers=headers)
    assert (again.status_code, again.content) == (304, b"")


def test_the_reliability_of_no_model_is_404(http: httpx.Client) -> None:
    """Unknown models and broken bundles have no reliability diagram."""
    assert http.get("/v1/models/broken/reliability").json()["type"] == "/problems/model-not-found"


def test_a_service_without_matplotlib_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib, pictures are a 406 that names the alternative."""

    def missing(_reliability: object, _kind: str) -> bytes:
        msg = "matplotlib is not installed"
        raise SettingsError(msg)

    monkeypatch.setattr("service.api.models.draw_reliability", missing)
    description = describe_bundle(SHIPPED / "hippocampus-mr")

    with pytest.raises(NotAcceptable, match="Ask for application/json"):
        _drawn(_reliability(description), "png")


def test_an_administrator_takes_a_model_out_of_service_and_puts_it_back(
    guarded: Guarded, nifti: Callable[..., bytes]
) -> None:
    """Only an administrator may unload a model; meanwhile its scans are refused, and its card can be read."""
    user = guarded.client(add_key(guarded.keys, "user", admin=False))
    admin = guarded.client(add_key(guarded.keys, "admin", admin=True))
    here = "/v1/models/hippocampus-mr"
    for change in ("load", "unload"):
        refused = user.post(f"{here}/{change}")
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")

    try:
        unloaded = admin.post(f"{here}/unload").json()
        assert (unloaded["ready"], unloaded["why_not"]) == (False, "An administrator has taken it out of service.")
        assert user.get(here).json()["ready"] is False
        assert user.get(here).json()["card"]["n_cases"] > 0
        assert [model["ready"] for model in user.get("/v1/models").json()["models"]] == [False]
        refused = user.post("/v1/segmentations", content=nifti())
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/model-unloaded")
        assert user.get("/v2/health/ready").status_code == 503
    finally:
        loaded = admin.post(f"{here}/load").json()

    assert loaded["ready"]
    assert loaded["identity"] == unloaded["identity"]
    headers = {"Prefer": "wait=50"}
    assert user.post("/v1/segmentations", content=nifti(), headers=headers).json()["state"] == "succeeded"


def test_only_installed_models_can_be_loaded(guarded: Guarded) -> None:
    """A name without a folder is a 404, also one that leads out of the folders."""
    admin = guarded.client(add_key(guarded.keys, "admin", admin=True))

    for name in ("gone", "..%2F..%2Fetc"):
        for change in ("load", "unload"):
            assert admin.post(f"/v1/models/{name}/{change}").status_code == 404


def test_what_is_out_of_service_stays_so_after_a_restart(tmp_path: Path) -> None:
    """An unloaded model stays unloaded after a restart."""
    state = StateDirectory.open(tmp_path / "state")

    state.remember_unloaded(["hippocampus-mr"])

    assert list(state.incoming.iterdir()) == []
    again = StateDirectory(tmp_path / "state")
    assert list(Registry.scan(SHIPPED, unloaded=again.unloaded).unloaded) == ["hippocampus-mr"]
    again.remember_unloaded([])
    assert again.unloaded == frozenset()
