"""The header of a safetensors file, read and checked without touching the weights.

Format: 8 bytes little-endian header length, a JSON object that maps each tensor name to its
dtype, shape and byte range, then the bytes (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ditmesh.errors import DamagedModel

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself sets."""

DTYPE_BITS: Mapping[str, int] = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}

DTYPE_NAMES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The floating-point dtypes under the names that torch gives them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file. `dtype` is the file's code, e.g. `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the file's metadata.

    Raises:
        DamagedModel: the file is missing, empty, truncated, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, body_at = _parse_header(path, file, size)
    except OSError as error:
        raise DamagedModel(f"{path}: cannot be read: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", {})
    tensors = {name: _tensor(path, name, entry, body_at) for name, entry in header.items()}
    _check_extent(path, tensors, body_at, size)
    return tensors, {str(key): str(value) for key, value in dict(metadata).items()}


def _parse_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise DamagedModel(f"{path}: {size} bytes long, too short for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise DamagedModel(f"{path}: not a safetensors file (it would have a {length} byte header)")
    if 8 + length > size:
        raise DamagedModel(
            f"{path}: truncated inside its header ({size} bytes, the header ends at {8 + length})"
        )
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise DamagedModel(f"{path}: not a safetensors file (its header is not JSON)") from error
    if not isinstance(header, dict):
        raise DamagedModel(f"{path}: not a safetensors file (its header is not an object)")
    return header, 8 + length


def _tensor(path: Path, name: str, entry: Any, body_at: int) -> StoredTensor:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(int(size) for size in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedModel(f"{path}: the header's entry of tensor {name!r} is malformed") from error
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise DamagedModel(f"{path}: tensor {name!r} has the unsupported dtype {dtype}")
    if min(shape, default=0) < 0 or not 0 <= start <= stop:
        raise DamagedModel(f"{path}: tensor {name!r} has an impossible shape or byte range")
    if math.prod(shape) * bits != (stop - start) * 8:
        raise DamagedModel(
            f"{path}: tensor {name!r} is {dtype} {list(shape)} but holds {stop - start} bytes"
        )
    return StoredTensor(name, dtype, shape, path, body_at + start, stop - start)


def _check_extent(path: Path, tensors: Mapping[str, StoredTensor], body_at: int, size: int) -> None:
    """Tensors must fill the file without gaps or overlap, as the format demands."""
    end = body_at
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset != end:
            raise DamagedModel(f"{path}: the bytes of tensor {tensor.name!r} are out of place")
        end += tensor.nbytes
    if size < end:
        raise DamagedModel(f"{path}: truncated: {size} bytes, {end} are needed")
    if size > end:
        raise DamagedModel(f"{path}: {size - end} bytes more than its header describes")
