"""Text headers of NRRD and MetaImage: bounded in length, read once, every value parsed strictly."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from service.errors import InvalidHeader, PayloadTruncated, UnsafeHeader

MAX_HEADER_BYTES: Final = 1 << 16
"""Maximum length of a header; those of converted scans have 1 to 3 kB."""

_INTEGER = re.compile(r"[-+]?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)


def read_lines(file: BinaryIO, is_last: Callable[[str], bool]) -> Iterator[str]:
    """Yield the lines of a header without line ends, including the last one; the file is then positioned at its voxels.

    Args:
        file: positioned at the start of the header.
        is_last: whether a line is the last one of the header.

    Raises:
        PayloadTruncated: the file ends inside the header.
        UnsafeHeader: more than `MAX_HEADER_BYTES`.
    """
    left = MAX_HEADER_BYTES
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        if not line.endswith(b"\n") and left > 0:
            msg = f"The file ends inside its header, after {MAX_HEADER_BYTES - left} bytes. Send the whole file again."
            raise PayloadTruncated(msg)
        text = line.decode("latin-1").rstrip("\r\n")
        yield text
        if is_last(text):
            return
    msg = f"The header has more than the {MAX_HEADER_BYTES} bytes that are read. Convert the scan again without free text."
    raise UnsafeHeader(msg)


class Fields:
    """The fields of a header that have a meaning here, by name in lower case."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Keep name and value of each field.

        Args:
            pairs: name and text of each field. Messages repeat the names, so they must be the standard's own.

        Raises:
            InvalidHeader: a field occurs twice.
        """
        self._texts: dict[str, str] = {}
        for name, text in pairs:
            if name in self._texts:
                msg = f"The header holds the field '{name}' twice. Convert the scan again."
                raise InvalidHeader(msg)
            self._texts[name] = text.strip()

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def text(self, name: str) -> str:
        """Return the text of a required field.

        Raises:
            InvalidHeader: the header lacks it; so do all methods below.
        """
        if name not in self._texts:
            msg = f"The header lacks the field '{name}'. Convert the scan again."
            raise InvalidHeader(msg)
        return self._texts[name]

    def word(self, name: str) -> str:
        """Return the text in lower case with single spaces."""
        return " ".join(self.text(name).lower().split())

    def integers(self, name: str, count: int) -> list[int]:
        """Return exactly `count` integers of a field."""
        return [int(word) for word in self._words(name, count, _INTEGER)]

    def numbers(self, name: str, count: int) -> list[float]:
        """Return exactly `count` numbers of a field; NaN and infinity are allowed."""
        return [float(word) for word in self._words(name, count, _NUMBER)]

    def vectors(self, name: str, count: int) -> list[list[float]]:
        """Return exactly `count` vectors of three numbers, each written as (x,y,z)."""
        bodies = re.findall(r"\(([^()]*)\)", self.text(name))
        vectors = [[part.strip() for part in body.split(",")] for body in bodies]
        leftover = re.sub(r"\([^()]*\)", "", self.text(name)).strip()
        if leftover or len(vectors) != count or not all(_are(_NUMBER, vector, 3) for vector in vectors):
            msg = f"The header's field '{name}' does not hold {count} vectors (x,y,z). Convert the scan again."
            raise InvalidHeader(msg)
        return [[float(part) for part in vector] for vector in vectors]

    def vectors_or_none(self, name: str, count: int) -> list[list[float] | None]:
        """Return exactly `count` vectors of three numbers, each written as (x,y,z), or None for the word none."""
        parts = re.findall(r"\([^()]*\)|none", self.text(name), re.IGNORECASE)
        if len(parts) != count or re.sub(r"\([^()]*\)|none", "", self.text(name), flags=re.IGNORECASE).strip():
            msg = f"The header's field '{name}' does not hold {count} vectors (x,y,z), or none for an axis outside space. Convert the scan again."
            raise InvalidHeader(msg)
        there = [part for part in parts if part.startswith("(")]
        vectors = iter(Fields([(name, " ".join(there))]).vectors(name, len(there)))
        return [next(vectors) if part.startswith("(") else None for part in parts]

    def _words(self, name: str, count: int, pattern: re.Pattern[str]) -> list[str]:
        words = self.text(name).split()
        if not _are(pattern, words, count):
            expected = "integers" if pattern is _INTEGER else "numbers"
            msg = f"The header's field '{name}' does not hold {count} {expected}. Convert the scan again."
            raise InvalidHeader(msg)
        return words


def _are(pattern: re.Pattern[str], words: list[str], count: int) -> bool:
    return len(words) == count and all(pattern.fullmatch(word) for word in words)
