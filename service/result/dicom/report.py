"""Outcome -> structured report (PS3.16 TID 1500 in a Comprehensive SR, PS3.3 A.35.3): the summary as coded items.

An unknown value has no item, e.g. the volume of a structure that may continue outside the scan: highdicom, which many
use to read reports, cannot read a NUM item without a value. The report is preliminary and unverified. If the statement
is withdrawn, every structure is marked so, and the report refers to no segmentation: a PACS may not get one.
"""

from collections.abc import Iterator

from highdicom.base import SOPClass
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from service.bundle.schema import Label
from service.result.dicom import codes as concepts
from service.result.dicom.outcome import MANUFACTURER, Outcome, StructureEstimate
from service.schemas import Structure

_MM3_PER_ML = 1000
_UNIT_MM3, _UNIT_ONE = codes.UCUM.CubicMillimeter, codes.UCUM.NoUnits


def make_report(outcome: Outcome) -> SOPClass:
    """Return the summary as a report that refers to the segmentation of the same outcome and to the source series."""
    structures = {structure.label: structure for structure in outcome.summary.structures}
    group = _withdrawn_group if outcome.withdrawn else _structure_group
    report = MeasurementReport(
        observation_context=_observer(outcome),
        procedure_reported=concepts.procedure_of(outcome.images[0].Modality),
        imaging_measurements=[
            _image_group(outcome),
            *(
                group(outcome, number, label, structures[label.value])
                for number, label in enumerate(outcome.labels, start=1)
            ),
        ],
    )
    report[0].ContentSequence.extend(_texts(outcome))
    made = ComprehensiveSR(
        evidence=[*([] if outcome.withdrawn else [_segmentation(outcome)]), *_instances(outcome)],
        content=report,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=[_predecessor(outcome)] if outcome.supersedes else None,
        coding_schemes=[concepts.SCHEME],
        **outcome.common("sr"),
    )
    return outcome.finish(made, "sr")


def _observer(outcome: Outcome) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=outcome.uid("sr", "device"),
        name=outcome.model.name,
        manufacturer_name=MANUFACTURER,
        model_name=outcome.model.name,
        serial_number=outcome.model.bundle_sha256,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    )


def _image_group(outcome: Outcome) -> MeasurementsAndQualitativeEvaluations:
    """Return the items about the whole image (PS3.16 TID 1501)."""
    summary = outcome.summary
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(outcome, "whole image"),
        finding_type=concepts.IMAGE_LEVEL,
        algorithm_id=_algorithm(outcome),
        measurements=[
            *_number(concepts.MEAN_CONFIDENCE, summary.foreground_confidence, _UNIT_ONE),
            *_number(concepts.P_VALUE, summary.statement.p, _UNIT_ONE),
            *_number(concepts.PERSONS, summary.statement.n_compared, _UNIT_ONE),
        ],
        qualitative_evaluations=[_status(outcome)],
    )


def _structure_group(
    outcome: Outcome, number: int, label: Label, structure: Structure
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the items about one structure (PS3.16 TID 1411)."""
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(outcome, structure.name),
        referenced_segment=ReferencedSegment(
            sop_class_uid=uid.SegmentationStorage,
            sop_instance_uid=outcome.uid("seg", "instance"),
            segment_number=number,
            source_series=SourceSeriesForSegmentation(outcome.images[0].SeriesInstanceUID),
        ),
        finding_category=concepts.category_of(label),
        finding_type=concepts.type_of(label),
        finding_sites=_sites(label),
        algorithm_id=_algorithm(outcome),
        measurements=list(_measurements(structure, outcome.estimates.get(label.value, StructureEstimate()))),
        qualitative_evaluations=[_cut_off(structure)],
    )


def _withdrawn_group(
    outcome: Outcome, _number: int, label: Label, structure: Structure
) -> MeasurementsAndQualitativeEvaluations:
    """Return the items about one structure of a withdrawn answer (PS3.16 TID 1501): marked, and without estimates."""
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(outcome, structure.name),
        finding_category=concepts.category_of(label),
        finding_type=concepts.type_of(label),
        finding_sites=_sites(label),
        algorithm_id=_algorithm(outcome),
        measurements=list(_measurements(structure, StructureEstimate())),
        qualitative_evaluations=[_status(outcome), _cut_off(structure)],
    )


def _status(outcome: Outcome) -> QualitativeEvaluation:
    return QualitativeEvaluation(concepts.STATEMENT_STATUS, concepts.STATUSES[outcome.summary.statement.status])


def _cut_off(structure: Structure) -> QualitativeEvaluation:
    """Return whether the structure is cut off, or that it was not found: then nothing is known of its end."""
    if not structure.found:
        return QualitativeEvaluation(concepts.FOUND, codes.SCT.No)
    return QualitativeEvaluation(concepts.CUT_OFF, codes.SCT.Yes if structure.truncated else codes.SCT.No)


def _sites(label: Label) -> list[FindingSite]:
    """Return the finding site of an anatomical structure, which is the structure itself; none for a lesion."""
    if concepts.category_of(label) != codes.cid7150.AnatomicalStructure:
        return []
    side, others = concepts.modifiers_of(label)
    return [FindingSite(concepts.type_of(label), side, others[0] if others else None)]


def _measurements(structure: Structure, estimate: StructureEstimate) -> Iterator[Measurement]:
    volume = None if structure.volume_ml is None else structure.volume_ml * _MM3_PER_ML
    yield from _number(codes.SCT.Volume, volume, _UNIT_MM3)
    yield from _number(concepts.VOLUME_LOWER_BOUND, estimate.volume_low_mm3, _UNIT_MM3)
    yield from _number(concepts.VOLUME_UPPER_BOUND, estimate.volume_high_mm3, _UNIT_MM3)
    yield from _number(concepts.ESTIMATED_DICE, estimate.dice, _UNIT_ONE)
    yield from _number(concepts.MEAN_CONFIDENCE, structure.mean_confidence, _UNIT_ONE)
    yield from _number(concepts.P5_CONFIDENCE, structure.p5_confidence, _UNIT_ONE)


def _number(name: Code, value: float | None, unit: Code) -> Iterator[Measurement]:
    """Yield a NUM item, or nothing without a value."""
    if value is not None:
        yield Measurement(name, float(f"{value:.6g}"), unit)


def _texts(outcome: Outcome) -> Iterator[TextContentItem]:
    """Yield the statement with its reasons, what was not compared, the warnings and the intended use."""
    summary = outcome.summary
    not_compared = ", ".join(summary.statement.not_compared)
    lines = [
        (concepts.STATEMENT, summary.statement.text),
        *((concepts.REASON, reason) for reason in summary.statement.reasons),
        *([(concepts.NOT_COMPARED, not_compared)] if not_compared else []),
        *((codes.DCM.Comment, warning) for warning in summary.warnings),
        (concepts.INTENDED_USE, summary.research_use_only),
    ]
    for name, text in lines:
        yield TextContentItem(name, text, "CONTAINS")


def _algorithm(outcome: Outcome) -> AlgorithmIdentification:
    parameters = [f"{name} sha256 {value}" for name, value in outcome.model.parameters.items()]
    return AlgorithmIdentification(outcome.model.name, outcome.model.version, parameters)


def _tracking(outcome: Outcome, what: str) -> TrackingIdentifier:
    return TrackingIdentifier(uid=outcome.uid("sr", f"tracking {what}"), identifier=what)


def _segmentation(outcome: Outcome) -> Dataset:
    """Return an anonymous header of the segmentation that the report refers to."""
    header = outcome.source.images()[0]
    header.SOPClassUID, header.SOPInstanceUID = uid.SegmentationStorage, outcome.uid("seg", "instance")
    header.SeriesInstanceUID = outcome.uid("seg", "series")
    return header


def _instances(outcome: Outcome) -> Iterator[Dataset]:
    """Yield a header of each source instance; the first, from which highdicom takes an identity, is whole and anonymous."""
    first, *others = outcome.source.instances.items()
    header = outcome.source.images()[0]
    header.SOPInstanceUID, header.SOPClassUID = first
    yield header
    for instance, sop_class in others:
        other = Dataset()
        other.SOPInstanceUID, other.SOPClassUID = instance, sop_class
        other.StudyInstanceUID, other.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
        yield other


def _predecessor(outcome: Outcome) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.StudyInstanceUID = uid.ComprehensiveSRStorage, outcome.images[0].StudyInstanceUID
    if outcome.supersedes is not None:
        header.SeriesInstanceUID = outcome.supersedes.series_instance_uid
        header.SOPInstanceUID = outcome.supersedes.sop_instance_uid
    return header
