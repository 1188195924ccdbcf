"""PNG files without an imaging library (https://www.w3.org/TR/png-3/)."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2  # colour type: truecolour without alpha


def encode_png(picture_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A picture uint8 [H, W, 3] as a PNG file. Raises ValueError for anything else."""
    if picture_HWC.dtype != np.uint8 or picture_HWC.ndim != 3 or picture_HWC.shape[2] != 3:
        raise ValueError(f"uint8 [H, W, 3] needed, got {picture_HWC.dtype} {picture_HWC.shape}")
    height, width, _ = picture_HWC.shape
    if not height or not width:
        raise ValueError("a picture has at least one pixel")
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)
    # Each row begins with the number of its filter; 0: the bytes stand as they are.
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture_HWC.reshape(height, 3 * width)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
    return _SIGNATURE + body + _chunk(b"IEND", b"")


def enlarged(picture_HWC: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Each pixel as a square of `factor` x `factor`."""
    return picture_HWC.repeat(factor, axis=0).repeat(factor, axis=1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
