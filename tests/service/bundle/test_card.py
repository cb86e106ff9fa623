import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.bundle.card import CalibrationCard, CaseRecord, Interval, Measurement
from service.calibration.cohort import BootstrapEstimate, CaseSums, class_scores, cohort_scores
from service.calibration.histogram import ReliabilityHistogram

SHAPE, SPACING = (4, 5, 6), (1.0, 1.0, 1.2)


@pytest.fixture
def card(tiny_bundle: Path) -> CalibrationCard:
    """Return the card of the tiny bundle."""
    return CalibrationCard.model_validate_json((tiny_bundle / "calibration.json").read_bytes())


def random_sums(seed: int) -> CaseSums:
    """Return the sums of a random image of 4 x 5 x 6 voxels and 3 classes."""
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet([1, 1, 1], size=SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    return CaseSums(
        case=f"case {seed}",
        person=f"person {seed // 2}",
        histogram=ReliabilityHistogram.from_probabilities(probs, generator.integers(3, size=SHAPE)),
        brier=float(generator.uniform(0, 240)),
        nll=float(generator.uniform(0, 240)),
        intersection=generator.integers(20, 40, size=3),
        predicted=generator.integers(40, 60, size=3),
        floor=generator.uniform(0, 0.1, size=3),
    )


def test_case_sums_survive_the_card() -> None:
    """Sums keep every digit and integer type through record and JSON."""
    sums = random_sums(1)

    text = CaseRecord.of(sums, SHAPE, SPACING).model_dump_json()
    record = CaseRecord.model_validate_json(text)
    back = record.sums()

    assert (record.shape, record.spacing_mm) == (SHAPE, SPACING)
    assert (back.case, back.person, back.brier, back.nll) == (sums.case, sums.person, sums.brier, sums.nll)
    for name in ("count", "sum_p", "sum_y"):
        _assert_identical(getattr(back.histogram, name), getattr(sums.histogram, name))
    for name in ("intersection", "predicted", "floor"):
        _assert_identical(getattr(back, name), getattr(sums, name))


def test_scores_replay_from_the_stored_sums() -> None:
    """Every figure of a measurement can be recomputed exactly from its JSON."""
    records = [CaseRecord.of(random_sums(seed), SHAPE, SPACING) for seed in range(4)]
    written = Measurement.of("torch", "fp32", "test", records, ["front", "back"])

    read = Measurement.model_validate_json(written.model_dump_json())
    sums = [case.sums() for case in read.cases]

    assert read.scores == {name: Interval.of(figure) for name, figure in cohort_scores(sums).items()}
    for c, structure in enumerate(["front", "back"], start=1):
        figures = class_scores(sums, c)
        assert read.class_scores[structure] == {name: Interval.of(figure) for name, figure in figures.items()}
    assert read.scores["dsc"].value == cohort_scores([random_sums(seed) for seed in range(4)])["dsc"].value


def test_undefined_figures_are_null() -> None:
    """JSON has no NaN, so undefined figures become null."""
    interval = Interval.of(BootstrapEstimate(0.5, float("nan"), float("nan")))

    assert interval.model_dump_json() == '{"value":0.5,"low":null,"high":null}'


def test_a_card_survives_json(card: CalibrationCard) -> None:
    """A card written to JSON is read back unchanged."""
    assert CalibrationCard.model_validate_json(card.model_dump_json()) == card


def test_a_measurement_is_found_by_engine_and_precision(card: CalibrationCard) -> None:
    """A measurement in fp32 does not substitute for fp16."""
    assert card.measurement("torch", "fp32") is card.measurements[0]
    assert card.measurement("torch", "fp16") is None
    assert card.measurement("openvino", "fp32") is None


def test_a_measurement_is_found_by_its_kind_of_device(card: CalibrationCard) -> None:
    """A measurement of a CPU does not substitute for a GPU's, nor one GPU's for another's."""
    of_gpu = card.measurements[0].model_copy(update={"device": "cuda-9.0"})
    both = card.model_copy(update={"schema_version": "1.1", "measurements": [*card.measurements, of_gpu]})

    assert both.measurement("torch", "fp32") is card.measurements[0]
    assert both.measurement("torch", "fp32", "cuda-9.0") is of_gpu
    assert both.measurement("torch", "fp32", "cuda-8.6") is None
    assert CalibrationCard.model_validate_json(both.model_dump_json()) == both


def test_a_card_without_gpus_stays_readable_for_earlier_versions(card: CalibrationCard) -> None:
    """It names schema 1.0 and no device; one that names a device must say 1.1."""
    written = card.model_dump_json()

    assert '"schema_version":"1.0"' in written
    assert '"device"' not in written
    document = json.loads(written)
    document["measurements"][0]["device"] = "cuda-9.0"
    with pytest.raises(ValidationError, match=r"expected schema_version 1\.1"):
        CalibrationCard.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(["comment"], "trust me", id="an unknown field"),
        pytest.param(["population", "site"], "here", id="an unknown field of a part"),
        pytest.param(["schema_version"], "2.0", id="a later schema"),
        pytest.param(["bins"], 15, id="other bins"),
        pytest.param(["bin_rule"], "floor(p * 20)", id="another bin rule"),
        pytest.param(["weights_sha256"], "0" * 63, id="a hash cut short"),
        pytest.param(["measurements"], [], id="no measurement"),
        pytest.param(["population", "n_persons"], 0, id="nobody"),
        pytest.param(["population", "split_unit"], "image", id="a split by image"),
        pytest.param(["measurements", 0, "engine"], "onnx", id="an unknown engine"),
        pytest.param(["measurements", 0, "device"], "../cuda-9.0", id="a device that is none"),
    ],
)
def test_a_card_of_another_form_is_refused(card: CalibrationCard, path: list[str | int], value: object) -> None:
    """Unknown fields and invalid values are refused."""
    document = card.model_dump(mode="json")
    part = document
    for key in path[:-1]:
        part = part[key]  # type: ignore[index]
    part[path[-1]] = value  # type: ignore[index]

    with pytest.raises(ValidationError, match=str(path[-1])):
        CalibrationCard.model_validate_json(json.dumps(document))


def _assert_identical(left: np.ndarray, right: np.ndarray) -> None:
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right)
