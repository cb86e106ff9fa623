import pytest

from service.api.prefer import seconds_to_wait
from service.errors import InvalidRequest


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["wait=500"], 60),
        (["wait=59"], 59),
        (["wait=0"], 0),
        ([], 0),
        ([""], 0),
        (["WAIT=5"], 5),
        (["Wait=5"], 5),
        (['wait="5"'], 5),
        (["wait = 5"], 5),
        (["respond-async, wait=5"], 5),
        (["respond-async", "wait=5"], 5),
        (["wait=5; foo=bar, handling=lenient"], 5),
        (["wait=5, wait=6"], 5),
        (['foo="a, wait=7", wait=5'], 5),
        (['foo="\\", wait=7"'], 0),
        (["await=7"], 0),
        (["wait"], 0),
        (["foo; wait=7"], 0),
    ],
)
def test_f15_a_wait_is_understood_as_the_rfc_writes_it(headers: list[str], seconds: float) -> None:
    """Names are written in any case, values with or without quotes, lists in one header or several; 60 s is the most here."""
    assert seconds_to_wait(headers, 60) == seconds


@pytest.mark.parametrize("value", ["soon", "", "-1", "1.5", "99999999999", '"5', '"soon"', "5 6"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(value: str) -> None:
    """It would be ignored silently."""
    with pytest.raises(InvalidRequest, match="whole seconds"):
        seconds_to_wait([f"WAIT={value}"], 60)
