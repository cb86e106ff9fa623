"""Says what an error of the operating system means for whoever asked the service to store or read something."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.errors import CalibrantError, StorageFault, StorageFull

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FAULTY: Final = frozenset(
    {
        *(errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EUCLEAN),
        *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    }
)
"""The disk fails, was mounted read-only or taken away, folders of the state directory are gone, or files cannot be opened."""

STORAGE_ERRORS: Final = (StorageFull, StorageFault)
"""Errors that pass by themselves once the operator has repaired the storage: the request or job is not at fault."""


def storage_error_of(error: OSError) -> CalibrantError | None:
    """Return the error of ours that an error of the system means; None for one that is not about storage."""
    if error.errno in _FULL:
        return StorageFull("The state directory has no space left. Try again later, or tell the operator.")
    if error.errno in _FAULTY:
        return StorageFault(
            f"The state directory cannot be used ({error.strerror}). Try again later, or tell the operator."
        )
    return None


@contextmanager
def told() -> Iterator[None]:
    """Raise what `storage_error_of` makes of an error of the system instead of it.

    Raises:
        StorageFull: no space is left.
        StorageFault: the disk fails, or the state directory was taken away.
    """
    try:
        yield
    except OSError as error:
        ours = storage_error_of(error)
        if ours is None:
            raise
        raise ours from error
