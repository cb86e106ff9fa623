from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.api.rates import Rates
from service.errors import RateLimited
from service.settings import Settings

Ask = Callable[..., httpx.Response]


@pytest.fixture(name="rates")
def rates_(tmp_path: Path) -> Rates:
    """Return counts with a limit of three requests and two failed logins."""
    return Rates(Settings(state_dir=tmp_path, max_requests_per_minute=3, max_failed_logins_per_minute=2))


def test_a_key_has_a_number_of_requests_in_a_minute(rates: Rates) -> None:
    """The fourth is refused and says when to go on; other keys, and callers without one, are not affected."""
    for _ in range(3):
        rates.count_request("a")
    with pytest.raises(RateLimited) as caught:
        rates.count_request("a")

    assert caught.value.status == 429
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    rates.count_request("b")
    for _ in range(5):
        rates.count_request("")


def test_logins_from_an_address_where_too_many_failed_are_refused(rates: Rates) -> None:
    """Only failures count, and only those of the same address."""
    for _ in range(9):
        rates.reject_guessing("10.0.0.1")
    for _ in range(2):
        rates.count_failure("10.0.0.1")

    with pytest.raises(RateLimited):
        rates.reject_guessing("10.0.0.1")
    rates.reject_guessing("10.0.0.2")


@pytest.mark.parametrize(("path", "field"), [("/login", "key"), ("/monailabel/auth/token", "password")])
def test_nobody_guesses_keys(ask: Ask, locked: FastAPI, lab_key: str, path: str, field: str) -> None:
    """After ten failures even the right key gets 429 with Retry-After, for a minute."""
    statuses = [ask(locked, "POST", path, data={field: f"cal_{n}"}).status_code for n in range(11)]
    answer = ask(locked, "POST", path, data={field: lab_key})

    assert statuses == [401] * 10 + [429]
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["type"] == "/problems/rate-limited"
