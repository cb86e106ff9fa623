import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.client.calls import Order, address_of, upload
from service.errors import ClientError, ServerUnreachable

MakeJob = Callable[..., dict[str, Any]]
Answer = Callable[..., Callable[[httpx.Request], httpx.Response]]
Ask = Callable[..., Any]


@given(st.text(max_size=70).filter(lambda text: not re.fullmatch("[0-9a-fA-F]{64}", text)))
@example("/data/scan.nii.gz")
@example("ab" * 31)
@example("ab" * 32 + "\n")
def test_a_str_that_is_no_id_is_refused_at_once(text: str) -> None:
    """A path as a str is not sent as an id."""
    with pytest.raises(
        ClientError, match=r"^A str is the id of an uploaded scan \(64 hex digits\); for a file pass pathlib\.Path"
    ):
        Order(text)


@given(st.binary(max_size=20))
def test_an_id_is_64_hex_digits(content: bytes) -> None:
    """The SHA-256 of any content is taken."""
    identifier = hashlib.sha256(content).hexdigest()
    assert Order(identifier).scan == identifier


@given(st.from_regex(r"[a-z]{1,9}(\.[a-z]{2,3})?(:[1-9][0-9]{0,3})?", fullmatch=True))
@example("localhost:8000")
@example("127.0.0.1:8000")
@example("ftp://host")
@example("http://")
@example("")
def test_an_address_without_http_is_refused(address: str) -> None:
    """The message says what is missing; with it the address is taken."""
    with pytest.raises(
        ServerUnreachable, match=r"^The address needs http:// or https://, e\.g\. http://127\.0\.0\.1:8000\.$"
    ):
        address_of(address)
    if address and "/" not in address:
        assert address_of(f"http://{address}").host == address.partition(":")[0]


@given(st.binary(max_size=30), st.sampled_from([Path, str]))
def test_a_file_to_upload_may_be_a_str(content: bytes, kind: type[Path] | type[str]) -> None:
    """An upload is always a file, so its path may be a str as well."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        path.write_bytes(content)
        call = next(upload(kind(path)))
    assert (call.body, call.headers["Content-Length"]) == (path, str(len(content)))


def test_orders_have_keys_of_their_own(scan: Path) -> None:
    """Two orders of one scan have different keys by default."""
    assert Order(scan).idempotency_key != Order(scan).idempotency_key
