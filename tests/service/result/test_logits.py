import gzip
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.result.files import LOGITS
from service.result.logits import encode_logits, read_logits


def _random(*shape: int) -> npt.NDArray[np.float16]:
    """Return float16 values of random bits, including NaN and infinities."""
    return np.random.default_rng(5).integers(0, 1 << 16, shape, np.uint16).view(np.float16)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 4, 5, 6), (1, 1, 1, 1), (2, 150, 150, 60)], ids=str)
def test_logits_come_back_as_they_are(shape: tuple[int, ...], tmp_path: Path) -> None:
    """They are restored bit for bit, for one image and several parts, and for files larger than one read."""
    logits = _random(*shape)
    (tmp_path / LOGITS).write_bytes(b"".join(encode_logits(logits)))

    actual = read_logits(tmp_path)

    assert actual.dtype == np.float16
    assert actual.shape == shape
    assert actual.tobytes() == logits.tobytes()


def test_numpy_reads_the_bytes_of_each_channel() -> None:
    """The file is a gzipped .npy without pickles: the high bytes of a channel, then the low bytes."""
    logits = np.array([1.0, -2.0, 65504, 6e-8, 0.1, -0.0], np.float16).reshape(2, 1, 1, 3)

    actual = np.load(io.BytesIO(gzip.decompress(b"".join(encode_logits(logits)))), allow_pickle=False)

    assert (actual.dtype, actual.shape) == (np.uint8, (2, 2, 1, 1, 3))
    assert np.array_equal(actual[:, 0] * 256.0 + actual[:, 1], logits.view(np.uint16))


def test_the_file_depends_on_neither_memory_layout_nor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits give the same bytes."""
    logits = _random(3, 4, 5, 6)
    first = b"".join(encode_logits(logits))

    monkeypatch.setattr("time.time", lambda: 4e9)

    assert b"".join(encode_logits(np.asfortranarray(logits))) == first


def test_separated_bytes_compress_better() -> None:
    """Smooth logits take less space than float16 values in sequence."""
    x = np.linspace(-3, 3, 40, dtype=np.float32)
    noise = np.random.default_rng(0).normal(scale=0.05, size=(40, 40, 40))
    logits = np.stack([x[:, None, None] * x[:, None] + noise, x[:, None] - x + noise]).astype(np.float16)

    packed = len(b"".join(encode_logits(logits)))

    assert packed < 0.95 * len(gzip.compress(logits.tobytes(), 9))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-2], r"ends before its last voxel"),
        (lambda content: content.replace(b"|u1", b"<f2", 1), r"holds float16, expected uint8"),
        (lambda content: content.replace(b"False", b"True ", 1), r"expected uint8 in C order"),
    ],
    ids=["cut", "float16", "Fortran order"],
)
def test_logits_that_are_damaged_are_refused(damage: object, words: str, tmp_path: Path) -> None:
    """A file that ends early or holds another type is an error, never a map of zeros."""
    assert callable(damage)
    content = b"".join(encode_logits(_random(2, 3, 4, 5)))
    (tmp_path / LOGITS).write_bytes(gzip.compress(damage(gzip.decompress(content))))

    with pytest.raises(ValueError, match=words):
        read_logits(tmp_path)
