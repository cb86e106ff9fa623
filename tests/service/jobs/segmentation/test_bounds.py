import pytest

from service.errors import CalibrantError, ServiceBusy, TooManyJobs
from service.jobs.segmentation.bounds import GUESSED_S, Bounds


def refusal(bounds: Bounds, owner: str, seconds: float | None = None) -> CalibrantError | None:
    """Return why an owner may not have another job, None if it may."""
    try:
        bounds.reject_full(owner, lambda: seconds)
    except CalibrantError as error:
        return error
    return None


def test_f2_an_owner_has_bounded_jobs_and_others_are_not_affected() -> None:
    """The third job of an owner is refused with 429 where two are allowed; one that ends makes room."""
    bounds = Bounds(2, 10)
    for job in ("a", "b", "b"):  # a job that is counted twice counts once
        bounds.join(job, "lab")

    error = refusal(bounds, "lab")
    assert isinstance(error, TooManyJobs)
    assert error.status == 429
    assert refusal(bounds, "clinic") is None
    bounds.leave("a")
    bounds.leave("a")
    assert refusal(bounds, "lab") is None
    assert len(bounds) == 1


def test_f2_all_owners_together_have_bounded_jobs() -> None:
    """When all places are taken, everybody is refused with 503."""
    bounds = Bounds(2, 2)
    bounds.begin_with({"a": "lab", "b": "clinic"})

    error = refusal(bounds, "practice")
    assert isinstance(error, ServiceBusy)
    assert error.status == 503


@pytest.mark.parametrize(("seconds", "told"), [(None, 3 * GUESSED_S), (0.2, 1), (5.0, 15), (1e9, 3600)])
def test_f2_retry_after_is_the_time_until_the_owners_next_job_ends(seconds: float | None, told: float) -> None:
    """Two jobs of others are ahead of the owner's first, so three must end; nobody is told more than an hour."""
    bounds = Bounds(1, 10)
    bounds.begin_with({"a": "x", "b": "y", "c": "lab"})

    error = refusal(bounds, "lab", seconds)
    assert error is not None
    assert error.retry_after_s == told
