import re

import pytest

from service import errors
from service.errors import BY_CODE, CalibrantError, InvalidProbabilities, ResultUnavailable, ServerProblem, from_code

CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, CalibrantError)]

WIRE = """
internal-error 500 Internal error
scan-invalid 422 The scan cannot be used
empty-file 422 The file is empty
unrecognised-format 422 The file format is not recognised
invalid-header 422 The header cannot be read
unsafe-header 422 The header points to other files or is too large
unsupported-compression 422 The compression is not supported
payload-truncated 422 The file is incomplete
payload-too-long 422 The file is longer than its header says
unsupported-dimensions 422 The image is not a 3-D volume
unsupported-voxel-type 422 The voxel type is not supported
invalid-spacing 422 The voxel size is not valid
invalid-affine 422 The orientation matrix is not valid
missing-orientation 422 The file does not say how its axes lie in the patient
volume-too-large 422 The volume is too large
non-finite-voxels 422 Some voxels are not numbers
constant-volume 422 The volume holds one intensity only
anatomy-not-found 422 The anatomy was not found
scan-not-accepted 422 The model is not made for this scan
unsafe-archive 422 The archive is not safe to unpack
archive-too-large 413 The archive is too large
encrypted-archive 422 The archive is encrypted
no-dicom 422 The archive holds no DICOM image
unsupported-transfer-syntax 422 The DICOM encoding is not supported
undecodable-voxels 422 The DICOM voxels cannot be decoded
multiple-series 422 The archive holds more than one series
duplicate-instance 422 The series holds different images at one position
gantry-tilt 422 The stack of slices is tilted
missing-slices 422 Slices of the series are missing
irregular-spacing 422 The slices are not evenly spaced
decoder-crashed 422 The file could not be decoded
decoder-deadline 422 The file took too long to decode
bad-request 400 The request cannot be served
payload-too-large 413 The upload is too large
upload-incomplete 400 The upload was interrupted
malformed-request 400 The request is not HTTP
headers-too-large 431 The headers are too large
request-too-slow 408 The request came too slowly
unknown-host 400 The request is addressed to another host
unsupported-media-type 415 The content type is not supported
invalid-request 422 A parameter of the request is not valid
idempotency-key-reused 422 The idempotency key belongs to another request
unauthorized 401 A key is needed
forbidden 403 Not allowed
rate-limited 429 Too many requests
foreign-origin 403 Sent by a page of another site
too-many-jobs 429 Too many unfinished jobs
too-many-uploads 429 Too many uploads at a time
model-not-found 404 There is no such model
model-unloaded 409 This model is out of service
job-not-found 404 There is no such segmentation
job-finished 409 The job has finished
scan-not-found 404 There is no such scan
result-not-ready 409 The segmentation has not finished
result-unavailable 409 The segmentation failed
result-expired 410 The result is no longer there
range-not-satisfiable 416 The file has no such range
not-acceptable 406 The result is not available in this format
no-source-series 409 The scan was not a DICOM series
geometry-mismatch 422 The reference does not lie on the scan's grid
unknown-labels 422 The reference holds unknown labels
measured-differ 422 The measured images do not belong together
not-offered 404 Not implemented
pacs-not-found 404 There is no such PACS
series-not-found 404 There is no such series
ambiguous-series 422 Several series fit the selection
unsuitable-series 422 This series cannot be segmented
series-changed 409 The series has changed
dead-letter-not-found 404 There is no such dead letter
source-invalid 400 The source of the cases cannot be used
pacs-error 502 The PACS cannot be used
pacs-unreachable 502 The PACS does not answer
pacs-busy 502 The PACS is busy
pacs-bad-response 502 The PACS's answer is not valid
pacs-refused 502 The PACS refuses
object-not-kept 502 The PACS did not keep what was sent
bundle-error 503 The model cannot be served
bundle-integrity 503 The model's files are not those of its manifest
bundle-invalid 503 The model's description is not valid
bundle-unsupported 503 This version cannot serve the model
engine-disagrees 503 The engine's output differs from the network's
execution-failed 500 The computation failed
inference-crashed 500 The inference process died
inference-deadline 500 The inference took too long
inference-out-of-memory 500 The case needs too much memory
device-unavailable 503 The device cannot be used
job-cancelled 409 The job was cancelled
job-abandoned 500 The job was given up
service-busy 503 The service is busy
insufficient-storage 507 No space is left for the scan
storage-error 503 The state directory cannot be used
database-busy 503 The database of the jobs is locked
audit-broken 500 The audit log was changed
invalid-probabilities 500 The values are not probabilities
settings-error 500 The configuration is not valid
client-error 500 The request failed
server-unreachable 500 The server does not answer
server-problem 500 The server refused the request
"""
"""Code, HTTP status and title of every error, as callers and stored jobs know them."""


def test_codes_statuses_and_titles_never_change() -> None:
    """Callers branch on the code, and jobs are stored with it: this list may only grow."""
    assert "\n".join(f"{error.code} {error.status} {error.title}" for error in BY_CODE.values()) == WIRE.strip()


def test_codes_are_unique() -> None:
    """A code names one class, so that a job's record leads back to it."""
    assert sorted(error.__name__ for error in BY_CODE.values()) == sorted(error.__name__ for error in CLASSES)
    assert all(BY_CODE[error.code] is error for error in CLASSES)


@pytest.mark.parametrize("error", CLASSES)
def test_every_class_describes_itself(error: type[CalibrantError]) -> None:
    """A class has a docstring, a title, a code that can stand in an address, and an HTTP error status."""
    assert error.__doc__
    assert error.title
    assert not error.title.endswith(".")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)
    assert 400 <= error.status <= 599


@pytest.mark.parametrize("error_class", CLASSES)
def test_an_error_is_made_of_its_detail(error_class: type[CalibrantError]) -> None:
    """The given sentence is the detail and the text of the exception."""
    error = error_class("What to do.")

    assert error.detail == "What to do."
    assert str(error) == "What to do."


@pytest.mark.parametrize("error_class", CLASSES)
def test_an_error_is_made_of_its_code(error_class: type[CalibrantError]) -> None:
    """A record or a problem document leads back to the class."""
    for code in (error_class.code, f"/problems/{error_class.code}"):
        error = from_code(code, "What to do.")
        assert type(error) is error_class
        assert error.detail == "What to do."


def test_an_unknown_code_is_an_error_of_the_given_class() -> None:
    """A newer version may have stored a code that this one does not know."""
    assert type(from_code("brand-new", "What to do.")) is CalibrantError
    assert type(from_code("about:blank", "What to do.", ResultUnavailable)) is ResultUnavailable


def test_the_status_of_an_answer_is_kept() -> None:
    """ServerProblem has the status of the answer; the class is untouched."""
    assert ServerProblem("What to do.", 422).status == 422
    assert ServerProblem.status == 500


def test_only_errors_of_the_caller_answer_4xx() -> None:
    """Errors of scan and request answer 4xx, all others 5xx; a cancelled job (409) is the one exception."""
    at_fault = {error for error in CLASSES if 400 <= error.status < 500} - {errors.JobCancelled}

    assert at_fault == {error for error in CLASSES if issubclass(error, errors.ScanError | errors.RequestError)}


def test_invalid_probabilities_are_a_value_error() -> None:
    """Callers of the calibration maths may catch what numpy's own functions raise."""
    with pytest.raises(ValueError, match="1 of 3"):
        raise InvalidProbabilities("1 of 3")  # noqa: EM101, TRY003 - a test's message


def test_a_problem_keeps_the_former_name_of_its_type() -> None:
    """`kind` was its name before 0.2, where it leaves."""
    problem = errors.ServerProblem("x", 422, problem_type="/problems/constant-volume")

    assert problem.kind == problem.problem_type == "/problems/constant-volume"
