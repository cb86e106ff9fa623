"""Every error that a caller can meet, with its HTTP status and its stable code.

CalibrantError
├── ScanError                       the scan cannot be segmented as it was sent
│   ├── EmptyBody                   nothing was sent
│   ├── UnrecognisedFormat          the bytes are no format that is read here
│   ├── InvalidHeader               a field of the header is missing, doubled or unreadable
│   ├── UnsafeHeader                the header points to other files, or is more than is read
│   ├── UnsupportedCompression      voxels or archive are packed in a way that is not unpacked here
│   ├── PayloadTruncated            fewer bytes than the header announces
│   ├── PayloadTooLong              more bytes than the header announces
│   ├── UnsupportedDimensions       not one 3-D volume
│   ├── UnsupportedVoxelType        RGB, complex, boolean or extended precision
│   ├── InvalidSpacing              a voxel size that is zero, negative or not finite
│   ├── InvalidAffine               a matrix that is not finite, singular or sheared
│   ├── MissingOrientation          the file does not say where the patient's left is
│   ├── VolumeTooLarge              more voxels than this service accepts
│   ├── NonFiniteVoxels             NaN or infinite intensities
│   ├── ConstantVolume              every voxel has the same intensity
│   ├── AnatomyNotFound             what the model segments was not found in the scan
│   ├── UnsafeArchive               a zip with links, or with names that lead out of it
│   ├── ArchiveTooLarge             a zip of more files or bytes than are unpacked
│   ├── EncryptedArchive            a zip that needs a password
│   ├── NoDicom                     a zip without a CT, MR or PET image
│   ├── UnsupportedTransferSyntax   DICOM voxels in an encoding that is not decoded here
│   ├── UndecodableVoxels           DICOM voxels that their decoder refuses
│   ├── MultipleSeries              a zip of more than one DICOM series, or of several stacks
│   ├── DuplicateInstance           different DICOM images of one place or of one identifier
│   ├── GantryTilt                  slices shifted against one another, as a tilted gantry leaves them
│   ├── MissingSlices               gaps in a stack of slices
│   ├── IrregularSpacing            distances between slices that differ
│   ├── DecoderCrashed              the decoding process died
│   └── DecoderDeadline             the decoding process took too long
├── RequestError                    the request itself is at fault
│   ├── PayloadTooLarge             body over the limit
│   ├── UploadIncomplete            the connection closed before the body ended
│   ├── UnknownHost                 the Host header names another service
│   ├── UnsupportedMediaType        a body that is not the scan itself
│   ├── InvalidRequest              a parameter or header that cannot be used
│   ├── IdempotencyKeyReused        the same key came with another body or other options
│   ├── Unauthorized                no key, or an unknown one
│   ├── Forbidden                   for administrators only
│   ├── ModelNotFound               no bundle of that name
│   ├── ModelUnloaded               an administrator has taken the model out of service
│   ├── JobNotFound                 no job of that id
│   ├── JobFinished                 too late to cancel it
│   ├── ScanNotFound                no scan of that id
│   ├── ResultNotReady              the job has not finished
│   ├── ResultUnavailable           the job failed: there is no result
│   ├── ResultExpired               what it would be computed from was not kept
│   ├── NotAcceptable               no format of the result is among those that are accepted
│   ├── NoSourceSeries              a DICOM result of a scan that was no DICOM series
│   ├── GeometryMismatch            a reference that lies on another grid than the scan
│   ├── UnknownLabels               a reference with values that the model has no label for
│   ├── NotOffered                  a part of MONAI Label that there is not here
│   ├── PacsNotFound                no PACS of that name in the configuration
│   ├── SeriesNotFound              the PACS holds no such series
│   ├── AmbiguousSeries             several series fit a selection
│   ├── UnsuitableSeries            not an image, or made by this service
│   ├── SeriesChanged               the PACS has other images of the series than when the job was made
│   ├── DeadLetterNotFound          no delivery of that id was given up
│   └── SourceError                 what a batch is to be made of holds no case, or is no list of cases
├── PacsError                       a PACS does not do its part
│   ├── PacsUnreachable             no connection, or none that lasted
│   ├── PacsBusy                    it answers that it cannot at the moment
│   ├── PacsBadResponse             its answer is not what the standard says
│   ├── PacsRefused                 it answers that it will not
│   └── ObjectNotKept               it says that it has stored an object, but does not hold what was sent
├── BundleError                     a bundle that must not be served
│   ├── BundleIntegrity             files and MANIFEST.json disagree
│   ├── BundleInvalid               a file of the bundle breaks its schema
│   ├── BundleUnsupported           valid, but asks for what this version cannot do
│   └── EngineDisagrees             an engine computes something else than the network
├── ExecutionError                  the computation failed
│   ├── InferenceCrashed            the inference process died on every attempt
│   ├── InferenceDeadline           the inference process took too long on every attempt
│   ├── InferenceOutOfMemory        the case needs more memory than inference may use
│   ├── JobCancelled                somebody asked for it to stop
│   └── JobAbandoned                the service was interrupted too often while it worked on the job
├── StorageFull                     no space left in the state directory
├── InvalidProbabilities            (also ValueError) not probabilities in [0, 1]
├── SettingsError                   the service refuses to start as it was configured
└── ClientError                     what `service.client` raises
    ├── ServerUnreachable           no answer
    └── ServerProblem               the server answered with a problem document

A message says what was found, what was expected and what to do. It never holds anything that the
user sent: no names, no paths, no header text, only numbers and kinds.
"""

from typing import ClassVar, Final


class CalibrantError(Exception):
    """Base of every error here; `detail` is a sentence that may be shown to the caller."""

    code: ClassVar[str] = "internal-error"
    status: int = 500
    title: str = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ScanError(CalibrantError):
    """The scan cannot be segmented as it was sent."""

    code = "scan-invalid"
    status = 422
    title = "The scan cannot be used"


class EmptyBody(ScanError):
    """Nothing was sent."""

    code = "empty-file"
    title = "The file is empty"


class UnrecognisedFormat(ScanError):
    """The bytes are no format that is read here."""

    code = "unrecognised-format"
    title = "The file format is not recognised"


class InvalidHeader(ScanError):
    """A field of the header is missing, stands twice or cannot be read."""

    code = "invalid-header"
    title = "The header cannot be read"


class UnsafeHeader(ScanError):
    """The header points to other files, or holds more than is read here."""

    code = "unsafe-header"
    title = "The header asks for what is not done here"


class UnsupportedCompression(ScanError):
    """Voxels or archive are packed in a way that is not unpacked here."""

    code = "unsupported-compression"
    title = "The compression is not supported"


class PayloadTruncated(ScanError):
    """The file holds fewer bytes than its header announces."""

    code = "payload-truncated"
    title = "The file is incomplete"


class PayloadTooLong(ScanError):
    """The file holds more bytes than its header announces."""

    code = "payload-too-long"
    title = "The file is longer than its header says"


class UnsupportedDimensions(ScanError):
    """The file is not one 3-D volume."""

    code = "unsupported-dimensions"
    title = "The image is not a 3-D volume"


class UnsupportedVoxelType(ScanError):
    """The voxels are not real numbers of at most 64 bits."""

    code = "unsupported-voxel-type"
    title = "The voxel type is not supported"


class InvalidSpacing(ScanError):
    """A voxel size is zero, negative or not finite."""

    code = "invalid-spacing"
    title = "The voxel size is not valid"


class InvalidAffine(ScanError):
    """The voxel-to-patient matrix is not finite, singular or sheared."""

    code = "invalid-affine"
    title = "The orientation matrix is not valid"


class MissingOrientation(ScanError):
    """The file does not say how its axes lie in the patient."""

    code = "missing-orientation"
    title = "The file does not say how its axes lie in the patient"


class VolumeTooLarge(ScanError):
    """The header announces more voxels than this service accepts."""

    code = "volume-too-large"
    title = "The volume is too large"


class NonFiniteVoxels(ScanError):
    """Some intensities are NaN or infinite."""

    code = "non-finite-voxels"
    title = "Some voxels are not numbers"


class ConstantVolume(ScanError):
    """Every voxel has the same intensity."""

    code = "constant-volume"
    title = "The volume holds one intensity only"


class AnatomyNotFound(ScanError):
    """What the model segments was not found in the scan."""

    code = "anatomy-not-found"
    title = "The anatomy was not found"


class UnsafeArchive(ScanError):
    """The zip holds links, devices, doubled names or names that lead out of it."""

    code = "unsafe-archive"
    title = "The archive is not safe to unpack"


class ArchiveTooLarge(ScanError):
    """The zip holds more files or unpacked bytes than are accepted."""

    code = "archive-too-large"
    status = 413
    title = "The archive is too large"


class EncryptedArchive(ScanError):
    """The zip needs a password."""

    code = "encrypted-archive"
    title = "The archive is encrypted"


class NoDicom(ScanError):
    """The zip holds no CT, MR or PET image."""

    code = "no-dicom"
    title = "The archive holds no DICOM image"


class UnsupportedTransferSyntax(ScanError):
    """The DICOM voxels are in an encoding that is not decoded here."""

    code = "unsupported-transfer-syntax"
    title = "The DICOM encoding is not supported"


class UndecodableVoxels(ScanError):
    """The decoder of the DICOM voxels refuses them."""

    code = "undecodable-voxels"
    title = "The DICOM voxels cannot be decoded"


class MultipleSeries(ScanError):
    """The zip holds more than one DICOM series, or several stacks of slices."""

    code = "multiple-series"
    title = "The archive holds more than one series"


class DuplicateInstance(ScanError):
    """Different DICOM images lie in one place or have one identifier."""

    code = "duplicate-instance"
    title = "The series holds different images of one place"


class GantryTilt(ScanError):
    """The slices are shifted against one another, as a tilted gantry leaves them."""

    code = "gantry-tilt"
    title = "The stack of slices is tilted"


class MissingSlices(ScanError):
    """The stack of slices has gaps."""

    code = "missing-slices"
    title = "Slices of the series are missing"


class IrregularSpacing(ScanError):
    """The distances between the slices differ."""

    code = "irregular-spacing"
    title = "The slices are not evenly spaced"


class DecoderCrashed(ScanError):
    """The process that decodes uploads died on this file."""

    code = "decoder-crashed"
    title = "The file could not be decoded"


class DecoderDeadline(ScanError):
    """The process that decodes uploads took too long on this file."""

    code = "decoder-deadline"
    title = "The file took too long to decode"


class RequestError(CalibrantError):
    """The request itself is at fault."""

    code = "bad-request"
    status = 400
    title = "The request cannot be served"


class PayloadTooLarge(RequestError):
    """The body is larger than the limit."""

    code = "payload-too-large"
    status = 413
    title = "The upload is too large"


class UploadIncomplete(RequestError):
    """The connection closed before the announced body had arrived."""

    code = "upload-incomplete"
    title = "The upload was interrupted"


class UnknownHost(RequestError):
    """The Host header names another service."""

    code = "unknown-host"
    title = "The request is addressed to another host"


class UnsupportedMediaType(RequestError):
    """The body is wrapped in something that is not read here."""

    code = "unsupported-media-type"
    status = 415
    title = "The content type is not supported"


class InvalidRequest(RequestError):
    """A parameter or header cannot be used as it was sent."""

    code = "invalid-request"
    status = 422
    title = "A parameter of the request is not valid"


class IdempotencyKeyReused(RequestError):
    """The same Idempotency-Key came with another body or other options."""

    code = "idempotency-key-reused"
    status = 422
    title = "The idempotency key belongs to another request"


class Unauthorized(RequestError):
    """No key, or one that is not known."""

    code = "unauthorized"
    status = 401
    title = "A key is needed"


class Forbidden(RequestError):
    """The key's owner may not do this."""

    code = "forbidden"
    status = 403
    title = "Not allowed"


class ModelNotFound(RequestError):
    """No bundle of that name is installed."""

    code = "model-not-found"
    status = 404
    title = "There is no such model"


class ModelUnloaded(RequestError):
    """An administrator has taken the model out of service."""

    code = "model-unloaded"
    status = 409
    title = "This model is out of service"


class JobNotFound(RequestError):
    """No job of that id exists."""

    code = "job-not-found"
    status = 404
    title = "There is no such segmentation"


class JobFinished(RequestError):
    """The job has finished: it cannot be cancelled any more."""

    code = "job-finished"
    status = 409
    title = "The job has finished"


class ScanNotFound(RequestError):
    """There is no scan of this id."""

    code = "scan-not-found"
    status = 404
    title = "No such scan"


class ResultNotReady(RequestError):
    """The job has not finished."""

    code = "result-not-ready"
    status = 409
    title = "The segmentation has not finished"


class ResultUnavailable(RequestError):
    """The job failed, so there is no result."""

    code = "result-unavailable"
    status = 409
    title = "The segmentation failed"


class ResultExpired(RequestError):
    """What the result would be computed from was not kept, or not for so long."""

    code = "result-expired"
    status = 410
    title = "The result is no longer there"


class NotAcceptable(RequestError):
    """None of the formats that the caller accepts exists."""

    code = "not-acceptable"
    status = 406
    title = "There is no such format of the result"


class NoSourceSeries(RequestError):
    """A DICOM result is asked for, but the scan was no DICOM series."""

    code = "no-source-series"
    status = 409
    title = "The scan was no DICOM series"


class GeometryMismatch(RequestError):
    """The reference lies on another grid than the scan."""

    code = "geometry-mismatch"
    status = 422
    title = "The reference does not lie on the scan's grid"


class UnknownLabels(RequestError):
    """The reference holds values that the model has no label for."""

    code = "unknown-labels"
    status = 422
    title = "The reference holds unknown labels"


class NotOffered(RequestError):
    """A part of MONAI Label's interface that there is not here."""

    code = "not-offered"
    status = 404
    title = "This is not offered here"


class PacsNotFound(RequestError):
    """No PACS of that name is configured."""

    code = "pacs-not-found"
    status = 404
    title = "There is no such PACS"


class SeriesNotFound(RequestError):
    """The PACS holds no such series."""

    code = "series-not-found"
    status = 404
    title = "There is no such series"


class AmbiguousSeries(RequestError):
    """Several series fit the selection."""

    code = "ambiguous-series"
    status = 422
    title = "Several series fit the selection"


class UnsuitableSeries(RequestError):
    """The series is no stack of images, or was made by this service."""

    code = "unsuitable-series"
    status = 422
    title = "The series is nothing to segment"


class SeriesChanged(RequestError):
    """The PACS has other images of the series than when the job was made."""

    code = "series-changed"
    status = 409
    title = "The series has changed"


class DeadLetterNotFound(RequestError):
    """No delivery of this id was given up."""

    code = "dead-letter-not-found"
    status = 404
    title = "There is no such dead letter"


class SourceError(RequestError):
    """What a batch is to be made of holds no case, or is no list of cases."""

    code = "source-invalid"
    title = "The source of the cases cannot be used"


class PacsError(CalibrantError):
    """A PACS does not do its part; what was sent to this service is not at fault."""

    code = "pacs-error"
    status = 502
    title = "The PACS cannot be used"


class PacsUnreachable(PacsError):
    """The PACS gave no connection, or none that lasted."""

    code = "pacs-unreachable"
    title = "The PACS does not answer"


class PacsBusy(PacsError):
    """The PACS answers that it cannot do it at the moment."""

    code = "pacs-busy"
    title = "The PACS is busy"


class PacsBadResponse(PacsError):
    """The answer of the PACS is not what the standard says."""

    code = "pacs-bad-response"
    title = "The PACS answers something else"


class PacsRefused(PacsError):
    """The PACS answers that it will not do it, however often it is asked."""

    code = "pacs-refused"
    title = "The PACS refuses"


class ObjectNotKept(PacsError):
    """The PACS says that it has stored an object, but does not hold what was sent."""

    code = "object-not-kept"
    title = "The PACS did not keep what was sent"


class BundleError(CalibrantError):
    """A bundle that must not be served."""

    code = "bundle-error"
    status = 503
    title = "The model cannot be served"


class BundleIntegrity(BundleError):
    """The files of the bundle and its MANIFEST.json disagree."""

    code = "bundle-integrity"
    title = "The model's files are not those of its manifest"


class BundleInvalid(BundleError):
    """A file of the bundle breaks its schema."""

    code = "bundle-invalid"
    title = "The model's description is not valid"


class BundleUnsupported(BundleError):
    """The bundle is valid, but asks for what this version cannot do."""

    code = "bundle-unsupported"
    title = "This version cannot serve the model"


class EngineDisagrees(BundleError):
    """An engine computes something else than the network says."""

    code = "engine-disagrees"
    title = "The engine does not compute what the network says"


class ExecutionError(CalibrantError):
    """The computation failed."""

    code = "execution-failed"
    title = "The computation failed"


class InferenceCrashed(ExecutionError):
    """The inference process died on every attempt."""

    code = "inference-crashed"
    title = "The inference process died"


class InferenceDeadline(ExecutionError):
    """The inference process took too long on every attempt."""

    code = "inference-deadline"
    title = "The inference took too long"


class InferenceOutOfMemory(ExecutionError):
    """The case needs more memory than inference may use."""

    code = "inference-out-of-memory"
    title = "The case needs too much memory"


class JobCancelled(ExecutionError):
    """Somebody asked for the job to stop."""

    code = "job-cancelled"
    status = 409
    title = "The job was cancelled"


class JobAbandoned(ExecutionError):
    """The service was interrupted too often while it worked on the job."""

    code = "job-abandoned"
    title = "The job was given up"


class StorageFull(CalibrantError):
    """No space is left in the state directory."""

    code = "insufficient-storage"
    status = 507
    title = "No space is left for the scan"


class InvalidProbabilities(CalibrantError, ValueError):
    """An array that should hold probabilities in [0, 1] or class labels does not."""

    code = "invalid-probabilities"
    title = "Not probabilities"


class SettingsError(CalibrantError):
    """The service refuses to start as it was configured."""

    code = "settings-error"
    title = "The configuration is not valid"


class ClientError(CalibrantError):
    """Base of what `service.client` raises."""

    code = "client-error"
    title = "The request failed"


class ServerUnreachable(ClientError):
    """No server answered."""

    code = "server-unreachable"
    title = "The server does not answer"


class ServerProblem(ClientError):
    """The server answered with a problem document (RFC 9457)."""

    code = "server-problem"
    title = "The server refused the request"

    def __init__(
        self,
        detail: str,
        status: int,
        *,
        problem_type: str = "about:blank",
        title: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what the server said.

        Args:
            detail: what was found, what was expected, what to do.
            status: HTTP status of the answer, or of the problem of a failed job.
            problem_type: `type` of the problem document, `/problems/` and the code of one of these errors.
            title: of the problem document.
            retry_after_s: seconds after which the server wants to be asked again.
        """
        super().__init__(detail)
        self.status = status
        self.problem_type = problem_type
        self.title = title or type(self).title
        self.retry_after_s = retry_after_s


def _tree(root: type[CalibrantError]) -> list[type[CalibrantError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


BY_CODE: Final = {error.code: error for error in _tree(CalibrantError)}
"""Every error class by its stable code."""
