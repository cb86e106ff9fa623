import pytest
from fastapi import Request

from service.api.negotiation import choose
from service.errors import NotAcceptable

OFFERS = {"application/json": "json", "image/png": "png", "image/svg+xml": "svg"}


def asking(*accept: str) -> Request:
    """Return a request with these Accept headers."""
    return Request({"type": "http", "headers": [(b"accept", value.encode()) for value in accept]})


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], "json"),
        (["*/*"], "json"),
        (["image/png"], "png"),
        (["IMAGE/PNG"], "png"),
        (["image/*"], "png"),
        (["image/*;q=0.5, image/svg+xml"], "svg"),
        (["image/png;q=0.1", "image/svg+xml;q=0.2"], "svg"),
        (["text/html, */*;q=0.1"], "json"),
        (["*/*, application/json;q=0"], "png"),
        (["image/png;q=high, image/svg+xml;q=0.1"], "svg"),
        (["image/png;level=1;q=0.3, image/svg+xml;q=0.2"], "png"),
    ],
    ids=str,
)
def test_the_best_of_what_is_accepted_is_chosen(accept: list[str], expected: str) -> None:
    """An exact media type counts before its family, and that before */*; of equal ones the first offered wins."""
    assert choose(asking(*accept), None, OFFERS) == expected


def test_the_parameter_goes_first() -> None:
    """?format= overrides Accept, because a link in a page cannot set headers."""
    assert choose(asking("image/png"), "svg", OFFERS) == "svg"


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "application/*;q=0", ";"])
def test_what_is_not_offered_is_refused(accept: str) -> None:
    """The answer lists the offers and does not repeat the request."""
    with pytest.raises(
        NotAcceptable, match=r"^None of the media types of Accept is offered\. Accept one of application/json,"
    ):
        choose(asking(accept), None, OFFERS)
