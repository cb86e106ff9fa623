from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from tests.service.api.monailabel.conftest import Slicer


def test_models_have_all_that_the_clients_index(connected: Slicer) -> None:
    """Every model has the keys that 3D Slicer and OHIF read; label values are those of the mask."""
    info = connected.info()

    config = describe_bundle(SHIPPED / "hippocampus-mr").config
    model = info["models"]["hippocampus-mr"]
    assert model["type"] == "segmentation"
    assert model["description"].startswith(config.description)
    assert "research use only" in model["description"]
    assert model["labels"] == {label.name: label.value for label in config.every_label[1:]}
    assert model["config"] == {}
    assert model["dimension"] == 3


def test_nothing_is_there_that_the_clients_stumble_over(connected: Slicer) -> None:
    """There is no top-level config, which 3D Slicer takes for an old server, and labels is a list, as OHIF needs."""
    info = connected.info()

    assert "config" not in info
    sides = [f"{side} {end} hippocampus" for side in ("left", "right") for end in ("anterior", "posterior")]
    assert info["labels"] == ["anterior hippocampus", "posterior hippocampus", *sides]
    assert "research use only" in info["description"]
    assert {info[name].__class__ for name in ("trainers", "strategies", "scoring", "train_stats")} == {dict}
    assert not any(info[name] for name in ("trainers", "strategies", "scoring"))
    assert info["datastore"] == {"total": 0, "completed": 0}
