"""PNG files, read back with nothing but zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditmesh.cli.png import encode_png, enlarged


def decode(data: bytes) -> np.ndarray:
    """A picture from a PNG file without filters, its checksums verified."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, []
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, rest) == (8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
        elements=st.integers(0, 255),
    )
)
def test_pictures_come_back(picture: np.ndarray) -> None:
    """Every pixel of every size is in the file as it was."""
    np.testing.assert_array_equal(decode(encode_png(picture)), picture)


def test_other_readers_agree() -> None:
    """A library that others use reads the same picture."""
    image = pytest.importorskip("PIL.Image")
    import io

    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    read = np.asarray(image.open(io.BytesIO(encode_png(picture))).convert("RGB"))
    np.testing.assert_array_equal(read, picture)


def test_views_that_are_not_dense() -> None:
    """A transposed view is written as it looks, not as it lies in memory."""
    picture = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3).transpose(1, 0, 2)
    np.testing.assert_array_equal(decode(encode_png(picture)), picture)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)],
)
def test_what_is_no_picture(picture: np.ndarray) -> None:
    """Another type, another shape or no pixels are refused."""
    with pytest.raises(ValueError, match=r"uint8|pixel"):
        encode_png(picture)


def test_enlarged() -> None:
    """Each pixel becomes a square."""
    picture = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    large = enlarged(picture, 3)
    assert large.shape == (3, 6, 3)
    assert (large[:, :3] == [1, 2, 3]).all()
    assert (large[:, 3:] == [4, 5, 6]).all()
