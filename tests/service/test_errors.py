import re

import pytest

from service import errors
from service.errors import BY_CODE, CalibrantError, InvalidProbabilities, ServerProblem

CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CalibrantError)
]  # fmt: skip


def _drawn() -> dict[str, str]:
    """Return parent by class as the docstring of the module draws them."""
    parents: list[str] = []
    drawn = {}
    for prefix, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)(?:  .*)?$", errors.__doc__ or "", re.MULTILINE):
        depth = len(prefix) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else ""
    return drawn


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes() -> None:
    """The overview lists every class below its parent, and no other."""
    assert _drawn() == {kind.__name__: "" if kind is CalibrantError else kind.__bases__[0].__name__ for kind in CLASSES}


def test_codes_are_unique() -> None:
    """A code names one class, so that a job's record leads back to it."""
    assert sorted(kind.__name__ for kind in BY_CODE.values()) == sorted(kind.__name__ for kind in CLASSES)
    assert all(BY_CODE[kind.code] is kind for kind in CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_describes_itself(kind: type[CalibrantError]) -> None:
    """It has a docstring, a title, a code that can stand in an address, and an error status of HTTP."""
    assert kind.__doc__
    assert kind.title
    assert not kind.title.endswith(".")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    assert 400 <= kind.status <= 599


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not ServerProblem])
def test_an_error_is_made_of_its_detail(kind: type[CalibrantError]) -> None:
    """The sentence that is given is the detail and the text of the exception."""
    error = kind("What to do.")

    assert error.detail == "What to do."
    assert str(error) == "What to do."


def test_the_status_of_an_answer_is_kept() -> None:
    """ServerProblem has the status of the answer; the class is untouched."""
    assert ServerProblem("What to do.", 422).status == 422
    assert ServerProblem.status == 500


def test_scans_and_requests_at_fault_are_the_client_s() -> None:
    """Errors of scan and request answer 4xx, everything else 5xx; a cancelled job is nobody's fault, and no failure of ours."""
    at_fault = {kind for kind in CLASSES if 400 <= kind.status < 500} - {errors.JobCancelled}

    assert at_fault == {kind for kind in CLASSES if issubclass(kind, errors.ScanError | errors.RequestError)}


def test_invalid_probabilities_are_a_value_error() -> None:
    """Callers of the calibration maths may catch what numpy's own functions raise."""
    with pytest.raises(ValueError, match="1 of 3"):
        raise InvalidProbabilities("1 of 3")  # noqa: EM101, TRY003 - a test's message
