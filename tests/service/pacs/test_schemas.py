import pytest
from pydantic import ValidationError

from service.pacs.schemas import ArrivedSeries, DeliveredObject, PacsCheck, PacsHealth


@pytest.mark.parametrize("series", ["", "1.2.840/../etc", "1.2.x", "1" * 65])
def test_an_announced_series_has_a_uid(series: str) -> None:
    """Scripts of an Orthanc can announce digits and dots only, at most 64."""
    with pytest.raises(ValidationError):
        ArrivedSeries(series=series)
    assert ArrivedSeries(series="1.2.840").series == "1.2.840"


def test_a_delivered_object_has_one_of_three_states() -> None:
    """It waits, is stored, or was given up."""
    for state in ("pending", "stored", "dead"):
        DeliveredObject.model_validate({"uid": "1.2", "state": state, "attempts": 1, "problem": None})
    with pytest.raises(ValidationError):
        DeliveredObject.model_validate({"uid": "1.2", "state": "lost", "attempts": 1, "problem": None})


def test_the_health_of_a_pacs_lists_its_checks() -> None:
    """The JSON that a caller reads holds every check in order."""
    checks = [PacsCheck(name="C-ECHO", ok=True, found="answers"), PacsCheck(name="C-FIND", ok=False, found="refused")]

    health = PacsHealth(pacs="archive", ok=False, circuit="closed", checks=checks)

    assert [check["name"] for check in health.model_dump(mode="json")["checks"]] == ["C-ECHO", "C-FIND"]
