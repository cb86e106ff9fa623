from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from service.bundle.schema import Locator, Region, ServiceConfig, Window, ZScore


def test_a_declaration_survives_json(tiny_config: ServiceConfig) -> None:
    """A configuration written to JSON is read back unchanged."""
    assert ServiceConfig.model_validate_json(tiny_config.model_dump_json()) == tiny_config


def test_intensity_steps_are_distinguished_by_name(tiny_config: ServiceConfig) -> None:
    """A list of steps keeps types and order."""
    document = changed(tiny_config, intensity=[{"step": "window", "low": -100, "high": 240}, {"step": "zscore"}])

    assert ServiceConfig.model_validate(document).intensity == [Window(low=-100, high=240), ZScore(nonzero=False)]


def test_a_declaration_cannot_be_changed(tiny_config: ServiceConfig) -> None:
    """A verified configuration is immutable."""
    with pytest.raises(ValidationError, match="frozen"):
        tiny_config.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("eval", "import os", id="an unknown field"),
        pytest.param("schema_version", "2.0", id="a later schema"),
        pytest.param("name", "Hippocampus MR", id="a name that is no slug"),
        pytest.param("name", "../tiny", id="a name that is a path"),
        pytest.param("spacing_mm", [1, 0, 1], id="a spacing of zero"),
        pytest.param("spacing_mm", [1, 1], id="two axes"),
        pytest.param("patch_size", [8, 8, 0], id="an empty window"),
        pytest.param("overlap", 1.0, id="windows that never advance"),
        pytest.param("orientation", "XYZ", id="letters of no direction"),
        pytest.param("orientation", "RAR", id="one axis twice"),
        pytest.param("activation", "sigmoid", id="another activation"),
        pytest.param("intensity", [{"step": "lambda"}], id="an unknown step"),
        pytest.param("intensity", [{"step": "window", "low": 5, "high": 5}], id="an empty intensity window"),
        pytest.param("temperature", [1.0, 1.0, 0.0], id="a temperature of zero"),
        pytest.param("temperature", [1.0, 1.0, float("inf")], id="an infinite temperature"),
    ],
)
def test_invalid_fields_are_refused(tiny_config: ServiceConfig, field: str, value: object) -> None:
    """The schema refuses each of these values and names the field."""
    with pytest.raises(ValidationError, match=field):
        ServiceConfig.model_validate(changed(tiny_config, **{field: value}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0], "at least one structure"),
        ([1, 0], "background 0 first"),
        ([0, 1, 1], "each value once"),
        ([0, 256], "less than or equal to 255"),
    ],
)
def test_labels_begin_with_background_and_are_distinct_bytes(
    tiny_config: ServiceConfig, values: list[int], message: str
) -> None:
    """A mask of bytes needs background 0 and a value for each structure."""
    labels = [{"value": value, "name": f"label {value}", "color": (0, 0, 0)} for value in values]

    with pytest.raises(ValidationError, match=message):
        ServiceConfig.model_validate(changed(tiny_config, labels=labels, temperature=[1.0] * len(values)))


def test_every_label_has_a_temperature(tiny_config: ServiceConfig) -> None:
    """Two temperatures for three labels leave a class uncalibrated."""
    with pytest.raises(ValidationError, match="2 temperatures for 3 labels"):
        ServiceConfig.model_validate(changed(tiny_config, temperature=[1.0, 1.0]))


def test_regions_are_made_of_labels(tiny_config: ServiceConfig) -> None:
    """A region can join only existing labels."""
    whole = {"name": "whole", "labels": [1, 2]}

    assert ServiceConfig.model_validate(changed(tiny_config, regions=[whole])).regions[0].labels == [1, 2]
    with pytest.raises(ValidationError, match=r"label values \[7\]"):
        ServiceConfig.model_validate(changed(tiny_config, regions=[{"name": "whole", "labels": [1, 7]}]))


def changed(config: ServiceConfig, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a configuration as a document with changed fields."""
    return config.model_dump(mode="json") | fields


def test_a_located_result_has_the_labels_of_each_part(tiny_config: ServiceConfig, tiny_locator: Locator) -> None:
    """The labels are one background and each part's structures, with the network's temperatures and regions."""
    config = ServiceConfig.model_validate(
        tiny_config.model_dump()
        | {
            "locator": tiny_locator.model_dump(),
            "temperature": [1.0, 2.0, 3.0],
            "regions": [Region(name="both", labels=[1, 2]), Region(name="back", labels=[2])],
        }
    )

    located = config.located

    assert [label.value for label in located.labels] == [0, 11, 12, 21, 22]
    assert located.temperature == [1, 2, 3, 2, 3]
    assert {structure.name: structure.channels for structure in located.structures} == {
        "left both": (1, 2),
        "left back": (2,),
        "right both": (3, 4),
        "right back": (4,),
    }
    assert located.locator is None
    assert ServiceConfig.model_validate(located.model_dump()) == located


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _: {"landmark": "nowhere"}, "which are not landmarks"),
        (lambda part: {"labels": part["labels"][:1]}, "expected one for each structure"),
        (lambda part: {"labels": [part["labels"][0], part["labels"][0]]}, "expected each value once"),
        (lambda part: {"labels": [part["labels"][0] | {"value": 1}, part["labels"][1]]}, "expected each value once"),
    ],
    ids=["landmark", "few labels", "value twice", "value of the crop"],
)
def test_a_locator_fits_the_network(
    change: Callable[[dict[str, Any]], dict[str, Any]], why: str, tiny_config: ServiceConfig, tiny_locator: Locator
) -> None:
    """Labels and landmarks of the parts must agree with the network."""
    locator = tiny_locator.model_dump()
    locator["parts"][0] |= change(locator["parts"][0])

    with pytest.raises(ValidationError, match=why):
        ServiceConfig.model_validate(tiny_config.model_dump() | {"locator": locator})
