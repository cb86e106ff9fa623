"""Every error that a caller can meet, with its HTTP status and its stable code.

A message says what was found, what was expected and what to do; of what the user sent, it holds only numbers and types.
"""

import re
from typing import ClassVar, Final


class CalibrantError(Exception):
    """Base of every error; `detail` is a sentence that may be shown to the caller.

    A subclass states its title; its status is that of its parent and its code is its name in kebab case
    (`VolumeTooLarge`: `volume-too-large`), unless stated.
    """

    code: ClassVar[str] = "internal-error"
    status: int = 500
    title: str = "Internal error"
    retry_after_s: float | None = None
    """Seconds after which asking again may help; None if it does not help."""

    def __init_subclass__(cls, *, title: str, status: int | None = None, code: str | None = None) -> None:
        super().__init_subclass__()
        cls.title = title
        cls.status = cls.status if status is None else status
        cls.code = code or re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        """Keep a sentence for the caller.

        Args:
            detail: what was found, what was expected, what to do.
            retry_after_s: seconds after which asking again may help; by default what the class says.
        """
        super().__init__(detail)
        self.detail = detail
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class ScanError(CalibrantError, title="The scan cannot be used", status=422, code="scan-invalid"):
    """The scan cannot be segmented as it was sent."""


class EmptyBody(ScanError, title="The file is empty", code="empty-file"):
    """The file is empty."""


class UnrecognisedFormat(ScanError, title="The file format is not recognised"):
    """The file is in a format that this service does not read."""


class InvalidHeader(ScanError, title="The header cannot be read"):
    """A header field is missing, duplicated or unreadable."""


class UnsafeHeader(ScanError, title="The header points to other files or is too large"):
    """The header points to other files, or exceeds the size limits."""


class UnsupportedCompression(ScanError, title="The compression is not supported"):
    """The voxels or the archive use a compression that this service does not read."""


class PayloadTruncated(ScanError, title="The file is incomplete"):
    """The file holds fewer bytes than its header announces."""


class PayloadTooLong(ScanError, title="The file is longer than its header says"):
    """The file holds more bytes than its header announces."""


class UnsupportedDimensions(ScanError, title="The image is not a 3-D volume"):
    """The file is not one 3-D volume."""


class UnsupportedVoxelType(ScanError, title="The voxel type is not supported"):
    """The voxels are not real numbers of at most 64 bits."""


class InvalidSpacing(ScanError, title="The voxel size is not valid"):
    """A voxel size is zero, negative or not finite."""


class InvalidAffine(ScanError, title="The orientation matrix is not valid"):
    """The voxel-to-patient matrix is not finite, singular or sheared."""


class MissingOrientation(ScanError, title="The file does not say how its axes lie in the patient"):
    """The file does not say how its axes lie in the patient."""


class VolumeTooLarge(ScanError, title="The volume is too large"):
    """The header announces more voxels than this service accepts."""


class NonFiniteVoxels(ScanError, title="Some voxels are not numbers"):
    """Some intensities are NaN or infinite."""


class ConstantVolume(ScanError, title="The volume holds one intensity only"):
    """Every voxel has the same intensity."""


class AnatomyNotFound(ScanError, title="The anatomy was not found"):
    """The locator did not find what the model segments."""


class ScanNotAccepted(ScanError, title="The model is not made for this scan"):
    """The scan says itself that it shows another modality, sequence, contrast or body part than the model accepts."""


class UnsafeArchive(ScanError, title="The archive is not safe to unpack"):
    """The zip holds links, devices, duplicate names or names that lead out of it."""


class ArchiveTooLarge(ScanError, title="The archive is too large", status=413):
    """The zip holds more files or unpacked bytes than this service accepts."""


class EncryptedArchive(ScanError, title="The archive is encrypted"):
    """The zip needs a password."""


class NoDicom(ScanError, title="The archive holds no DICOM image"):
    """The zip holds no CT, MR or PET image."""


class UnsupportedTransferSyntax(ScanError, title="The DICOM encoding is not supported"):
    """The DICOM voxels use a transfer syntax that this service does not decode."""


class UndecodableVoxels(ScanError, title="The DICOM voxels cannot be decoded"):
    """The decoder of the transfer syntax rejects the DICOM voxels."""


class MultipleSeries(ScanError, title="The archive holds more than one series"):
    """The zip holds more than one DICOM series, or several stacks of slices."""


class DuplicateInstance(ScanError, title="The series holds different images at one position"):
    """Different DICOM images share a position or a SOP Instance UID."""


class GantryTilt(ScanError, title="The stack of slices is tilted"):
    """The slices are shifted against one another, as a tilted gantry leaves them."""


class MissingSlices(ScanError, title="Slices of the series are missing"):
    """The stack of slices has gaps."""


class IrregularSpacing(ScanError, title="The slices are not evenly spaced"):
    """The distances between the slices differ."""


class DecoderCrashed(ScanError, title="The file could not be decoded"):
    """The decoding process died on this file."""


class DecoderDeadline(ScanError, title="The file took too long to decode"):
    """The decoding process took too long on this file."""


class RequestError(CalibrantError, title="The request cannot be served", status=400, code="bad-request"):
    """The request itself is at fault."""


class PayloadTooLarge(RequestError, title="The upload is too large", status=413):
    """The body is larger than the limit."""


class UploadIncomplete(RequestError, title="The upload was interrupted"):
    """The connection closed before the whole body had arrived."""


class MalformedRequest(RequestError, title="The request is not HTTP"):
    """What was received is not an HTTP request."""


class HeadersTooLarge(RequestError, title="The headers are too large", status=431):
    """The request line and headers are larger than the limit."""


class RequestTooSlow(RequestError, title="The request came too slowly", status=408):
    """The headers or the body did not arrive in time."""


class UnknownHost(RequestError, title="The request is addressed to another host"):
    """The Host header names another service."""


class UnsupportedMediaType(RequestError, title="The content type is not supported", status=415):
    """The body has a content type that this service does not read."""


class InvalidRequest(RequestError, title="A parameter of the request is not valid", status=422):
    """A parameter or header is not valid."""


class IdempotencyKeyReused(RequestError, title="The idempotency key belongs to another request", status=422):
    """The same Idempotency-Key came with another body or other options."""


class Unauthorized(RequestError, title="A key is needed", status=401):
    """The request has no key, or an unknown one."""


class Forbidden(RequestError, title="Not allowed", status=403):
    """The key's owner may not do this."""


class RateLimited(RequestError, title="Too many requests", status=429):
    """The key was used, or a login failed, too often of late; `Retry-After` says when to go on."""


class ForeignOrigin(RequestError, title="Sent by a page of another site", status=403):
    """A web page of another site sent the request from a user's browser."""


class TooManyJobs(RequestError, title="Too many unfinished jobs", status=429):
    """The owner has as many unfinished jobs as are allowed; `Retry-After` says when there is room."""


class TooManyUploads(RequestError, title="Too many uploads at a time", status=429):
    """The owner sends as many scans, or bytes, at a time as are allowed; `Retry-After` says when there is room."""


class ModelNotFound(RequestError, title="There is no such model", status=404):
    """No bundle of that name is installed."""


class ModelUnloaded(RequestError, title="This model is out of service", status=409):
    """An administrator has taken the model out of service."""


class JobNotFound(RequestError, title="There is no such segmentation", status=404):
    """No job has this id."""


class JobFinished(RequestError, title="The job has finished", status=409):
    """The job has finished and can no longer be cancelled."""


class ScanNotFound(RequestError, title="There is no such scan", status=404):
    """No scan has this id."""


class ResultNotReady(RequestError, title="The segmentation has not finished", status=409):
    """The job has not finished."""


class ResultUnavailable(RequestError, title="The segmentation failed", status=409):
    """The job failed, so there is no result."""


class ResultExpired(RequestError, title="The result is no longer there", status=410):
    """The result, or the logits that it is computed from, was not kept."""


class RangeNotSatisfiable(RequestError, title="The file has no such range", status=416):
    """The range of bytes that was asked for lies beyond the end of the file."""


class NotAcceptable(RequestError, title="The result is not available in this format", status=406):
    """The result exists in none of the formats that the caller accepts."""


class NoSourceSeries(RequestError, title="The scan was not a DICOM series", status=409):
    """A DICOM result was requested, but the scan was not a DICOM series."""


class GeometryMismatch(RequestError, title="The reference does not lie on the scan's grid", status=422):
    """The reference lies on another grid than the scan."""


class UnknownLabels(RequestError, title="The reference holds unknown labels", status=422):
    """The reference holds values that the model has no label for."""


class MeasuredDiffer(RequestError, title="The measured images do not belong together", status=422):
    """Images that were measured with different models, or whose structures differ."""


class NotOffered(RequestError, title="Not implemented", status=404):
    """A MONAI Label route that this service does not implement."""


class PacsNotFound(RequestError, title="There is no such PACS", status=404):
    """No PACS of that name is configured."""


class SeriesNotFound(RequestError, title="There is no such series", status=404):
    """The PACS holds no such series."""


class AmbiguousSeries(RequestError, title="Several series fit the selection", status=422):
    """Several series fit the selection."""


class UnsuitableSeries(RequestError, title="This series cannot be segmented", status=422):
    """The series is not a stack of images, or was made by this service."""


class SeriesChanged(RequestError, title="The series has changed", status=409):
    """The images of the series at the PACS changed after the job was made."""


class DeadLetterNotFound(RequestError, title="There is no such dead letter", status=404):
    """No dead letter has this id."""


class SourceError(RequestError, title="The source of the cases cannot be used", code="source-invalid"):
    """The source of a batch holds no cases, or is not a list of cases."""


class PacsError(CalibrantError, title="The PACS cannot be used", status=502):
    """The PACS fails; the request is not at fault."""


class PacsUnreachable(PacsError, title="The PACS does not answer"):
    """The PACS accepts no connection, or drops it."""


class PacsBusy(PacsError, title="The PACS is busy"):
    """The PACS answers that it is temporarily unable to serve the request."""


class PacsBadResponse(PacsError, title="The PACS's answer is not valid"):
    """The answer of the PACS does not follow the standard."""


class PacsRefused(PacsError, title="The PACS refuses"):
    """The PACS refuses for good; asking again does not help."""


class ObjectNotKept(PacsError, title="The PACS did not keep what was sent"):
    """The PACS reported success, but does not hold the object that was sent."""


class BundleError(CalibrantError, title="The model cannot be served", status=503):
    """The bundle must not be served."""


class BundleIntegrity(BundleError, title="The model's files are not those of its manifest"):
    """The bundle's files and its MANIFEST.json disagree."""


class BundleInvalid(BundleError, title="The model's description is not valid"):
    """A file of the bundle breaks its schema."""


class BundleUnsupported(BundleError, title="This version cannot serve the model"):
    """The bundle is valid, but needs a feature that this version lacks."""


class EngineDisagrees(BundleError, title="The engine's output differs from the network's"):
    """The engine's output differs from that of the reference network."""


class ExecutionError(CalibrantError, title="The computation failed", code="execution-failed"):
    """The computation failed."""


class InferenceCrashed(ExecutionError, title="The inference process died"):
    """The inference process died on every attempt."""


class InferenceDeadline(ExecutionError, title="The inference took too long"):
    """The inference process took too long on every attempt."""


class InferenceOutOfMemory(ExecutionError, title="The case needs too much memory"):
    """The case needs more memory than inference may use."""


class DeviceUnavailable(ExecutionError, title="The device cannot be used", status=503):
    """The device that should compute is missing, or fails before a case has begun."""


class JobCancelled(ExecutionError, title="The job was cancelled", status=409):
    """The job was cancelled."""


class JobAbandoned(ExecutionError, title="The job was given up"):
    """The service was interrupted too often while it worked on the job."""


class ServiceBusy(CalibrantError, title="The service is busy", status=503):
    """The service has too much to do at the moment; the same request succeeds after the seconds of `Retry-After`."""


class StorageFull(CalibrantError, title="No space is left for the scan", status=507, code="insufficient-storage"):
    """The state directory has no space left."""

    retry_after_s = 60


class StorageFault(CalibrantError, title="The state directory cannot be used", status=503, code="storage-error"):
    """The disk of the state directory fails, is read-only or was taken away."""

    retry_after_s = 30


class DatabaseBusy(CalibrantError, title="The database of the jobs is locked", status=503):
    """Another program locks the database of the jobs."""

    retry_after_s = 5


class AuditBroken(CalibrantError, title="The audit log was changed"):
    """A line of the audit log was changed, taken out or put in."""


class InvalidProbabilities(CalibrantError, ValueError, title="The values are not probabilities"):
    """The values are not probabilities in [0, 1], or not class labels."""


class SettingsError(CalibrantError, title="The configuration is not valid"):
    """The configuration is not valid, so the service does not start."""


class ClientError(CalibrantError, title="The request failed"):
    """Base of the errors that only the client raises."""


class ServerUnreachable(ClientError, title="The server does not answer"):
    """No server answered."""


class ServerProblem(ClientError, title="The server refused the request"):
    """The server answered with a problem document (RFC 9457)."""

    def __init__(
        self,
        detail: str,
        status: int = 500,
        *,
        problem_type: str = "about:blank",
        title: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Keep detail, HTTP status, type and title of a problem document, or of the problem of a failed job.

        Its `type` is `/problems/` and the code of one of these errors; after `retry_after_s` seconds the server asks to be
        tried again.
        """
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.status = status
        self.problem_type = self.kind = problem_type  # the second is its former name, which leaves with version 0.2
        self.title = title or type(self).title


def _tree(root: type[CalibrantError]) -> list[type[CalibrantError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


BY_CODE: Final = {error.code: error for error in _tree(CalibrantError)}
"""Every error class by its stable code."""


def from_code(code: str, detail: str, default: type[CalibrantError] = CalibrantError) -> CalibrantError:
    """Return the error with this code, as a process, a job's record or a problem document (RFC 9457) names it.

    Args:
        code: stable code, or `/problems/` and the code.
        detail: sentence for the caller.
        default: class for an unknown code.
    """
    return BY_CODE.get(code.removeprefix("/problems/"), default)(detail)
