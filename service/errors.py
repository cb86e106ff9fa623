"""Every error that a caller can meet, with its HTTP status and its stable code.

CalibrantError
├── ScanError                       the scan cannot be segmented as it was sent
│   ├── EmptyBody                   nothing was sent
│   ├── UnrecognisedFormat          the bytes are no format that is read here
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
│   ├── DecoderCrashed              the decoding process died
│   └── DecoderDeadline             the decoding process took too long
├── RequestError                    the request itself is at fault
│   ├── PayloadTooLarge             body over the limit
│   ├── UploadIncomplete            the connection closed before the body ended
│   ├── UnknownHost                 the Host header names another service
│   ├── UnsupportedMediaType        a body that is not the scan itself
│   ├── InvalidRequest              a parameter or header that cannot be used
│   ├── IdempotencyKeyReused        the same key came with another body or other options
│   ├── ModelNotFound               no bundle of that name
│   ├── JobNotFound                 no job of that id
│   ├── ResultNotReady              the job has not finished
│   └── ResultUnavailable           the job failed: there is no result
├── BundleError                     a bundle that must not be served
│   ├── BundleIntegrity             files and MANIFEST.json disagree
│   ├── BundleInvalid               a file of the bundle breaks its schema
│   └── BundleUnsupported           valid, but asks for what this version cannot do
├── ExecutionError                  the computation failed
│   ├── InferenceCrashed            the inference process died on every attempt
│   ├── InferenceDeadline           the inference process took too long on every attempt
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
    title: ClassVar[str] = "Internal error"

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


class ModelNotFound(RequestError):
    """No bundle of that name is installed."""

    code = "model-not-found"
    status = 404
    title = "There is no such model"


class JobNotFound(RequestError):
    """No job of that id exists."""

    code = "job-not-found"
    status = 404
    title = "There is no such segmentation"


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

    def __init__(self, detail: str, status: int) -> None:
        """Keep the status of the answer.

        Args:
            detail: what the server says.
            status: HTTP status of the answer, or of the problem of a failed job.
        """
        super().__init__(detail)
        self.status = status


def _tree(root: type[CalibrantError]) -> list[type[CalibrantError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


BY_CODE: Final = {error.code: error for error in _tree(CalibrantError)}
"""Every error class by its stable code."""
