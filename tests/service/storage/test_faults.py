import errno
import os

import pytest

from service.errors import CalibrantError, StorageFault, StorageFull
from service.storage.faults import STORAGE_ERRORS, storage_error_of, told


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *((code, StorageFull) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((code, StorageFault) for code in (errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE, errno.EACCES)),
        (errno.EPIPE, type(None)),
    ],
)
def test_f7_errors_of_the_system_are_told_apart(code: int, expected: type[CalibrantError]) -> None:
    """No space is 507, a failing disk 503, and a broken connection no matter of storage."""
    found = storage_error_of(OSError(code, os.strerror(code)))

    assert type(found) is expected
    assert found is None or (isinstance(found, STORAGE_ERRORS) and found.retry_after_s)


def test_an_error_is_told() -> None:
    """What is about storage is raised as ours, everything else unchanged."""
    with pytest.raises(StorageFull, match="no space left"), told():
        raise OSError(errno.ENOSPC, "")
    with pytest.raises(BrokenPipeError), told():
        raise BrokenPipeError(errno.EPIPE, "")
