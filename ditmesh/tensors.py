"""Tensors on the wire, without torch: what they are, how they hash, how numpy sees them.

`ditmesh.torch_tensors` is the other side, wire <-> torch. bf16 has no numpy type: it is
read as float32, which holds every bf16 value exactly.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ditmesh.errors import InvalidTensor, LimitExceeded
from ditmesh.v1 import tensor_pb2 as pb

MAX_DIMENSIONS = 8

_FINITE_BLOCK = 1 << 16
_BF16_EXPONENT = np.uint16(0x7F80)
"""All ones in what is infinite or no number."""


class DataType(enum.Enum):
    """Element formats: the name that enters the hash, the wire number, bytes an element."""

    F32 = ("f32", pb.DATA_TYPE_F32, 4, "<f4")
    F16 = ("f16", pb.DATA_TYPE_F16, 2, "<f2")
    BF16 = ("bf16", pb.DATA_TYPE_BF16, 2, "<u2")
    U8 = ("u8", pb.DATA_TYPE_U8, 1, "|u1")
    I64 = ("i64", pb.DATA_TYPE_I64, 8, "<i8")

    def __init__(self, label: str, wire: int, itemsize: int, storage: str) -> None:
        self.label = label
        self.wire = wire
        self.itemsize = itemsize
        self.storage = np.dtype(storage)

    @property
    def is_float(self) -> bool:
        """Whether values can be NaN or infinite."""
        return self in (DataType.F32, DataType.F16, DataType.BF16)


_BY_WIRE = {t.wire: t for t in DataType}
_BY_STORAGE = {t.storage: t for t in DataType if t is not DataType.BF16}


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is: element format, shape (outermost first), SHA-256 or empty."""

    data_type: DataType
    shape: tuple[int, ...]
    sha256: bytes = b""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.numel * self.data_type.itemsize

    def __str__(self) -> str:
        return f"{self.data_type.label}{list(self.shape)}"

    def to_proto(self) -> pb.TensorSpec:
        """As a message."""
        return pb.TensorSpec(
            data_type=self.data_type.wire,  # type: ignore[arg-type] # enum numbers are ints
            shape=self.shape,
            sha256=self.sha256,
        )

    @classmethod
    def from_proto(cls, message: pb.TensorSpec, *, field: str, max_bytes: int) -> TensorSpec:
        """Read and check a declaration; nothing is allocated for it.

        Raises InvalidTensor for an unknown type, a bad shape or hash, and LimitExceeded for
        more than `max_bytes` bytes. `field` names the message in the error.
        """
        data_type = _BY_WIRE.get(message.data_type)
        if data_type is None:
            raise InvalidTensor(
                f"{field}.data_type is {message.data_type}; use one of "
                + ", ".join(f"DATA_TYPE_{t.name}" for t in DataType),
                field=f"{field}.data_type",
            )
        shape = tuple(message.shape)
        if len(shape) > MAX_DIMENSIONS or any(extent < 1 for extent in shape):
            raise InvalidTensor(
                f"{field}.shape is {list(shape)}; at most {MAX_DIMENSIONS} dimensions, "
                "each at least 1",
                field=f"{field}.shape",
            )
        if len(message.sha256) not in (0, 32):
            raise InvalidTensor(
                f"{field}.sha256 has {len(message.sha256)} bytes; a SHA-256 has 32, "
                "or leave it empty",
                field=f"{field}.sha256",
            )
        spec = cls(data_type, shape, message.sha256)
        if spec.nbytes > max_bytes:
            raise LimitExceeded(
                f"{field} is {spec} with {spec.nbytes} bytes; this server takes at most "
                f"{max_bytes} bytes a request",
                field=field,
            )
        return spec


class SharedFile(Protocol):
    """Memory that other processes of this machine can read: see `ditmesh.shared_memory`."""

    fd: int
    token: bytes


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in shared memory that nobody writes to, while that is there."""

    memory: Callable[[], SharedFile | None]
    offset: int


@dataclass(frozen=True)
class WireTensor:
    """A tensor's bytes with their meaning. `data` is little-endian and row-major."""

    spec: TensorSpec
    data: bytes | memoryview = field(repr=False)
    place: Place | None = field(default=None, repr=False, compare=False)
    """Where it lies in memory that this process can tell others of, if it does."""

    def __post_init__(self) -> None:
        if len(self.data) != self.spec.nbytes:
            raise InvalidTensor(f"{self.spec} needs {self.spec.nbytes} bytes, not {len(self.data)}")

    def hashed(self) -> WireTensor:
        """The same tensor with its content hash set, computed if it was empty."""
        if self.spec.sha256:
            return self
        digest = content_hash(self.spec.data_type, self.spec.shape, self.data)
        return replace(self, spec=replace(self.spec, sha256=digest))

    def numpy(self) -> npt.NDArray[np.generic]:
        """As a read-only array of the same shape; bf16 as float32."""
        raw = np.frombuffer(self.data, dtype=self.spec.data_type.storage).reshape(self.spec.shape)
        if self.spec.data_type is DataType.BF16:
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw

    def all_finite(self) -> bool:
        """Whether no value is NaN or infinite; looked at once, however often it is asked."""
        return self._finite

    @property
    def finite_is_known(self) -> bool:
        """Whether `all_finite` takes no time."""
        return "_finite" in self.__dict__

    @cached_property
    def _finite(self) -> bool:
        if not self.spec.data_type.is_float:
            return True
        flat = np.frombuffer(self.data, dtype=self.spec.data_type.storage)
        finite = _bf16_finite if self.spec.data_type is DataType.BF16 else np.isfinite
        # Block by block: what is in the processor's cache is looked at several times as fast.
        blocks = range(0, len(flat), _FINITE_BLOCK)
        return all(bool(finite(flat[at : at + _FINITE_BLOCK]).all()) for at in blocks)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[np.generic], *, copy: bool = True) -> WireTensor:
        """An array's bytes; without `copy`, where they are if they are as they travel.

        Raises InvalidTensor for a type that does not travel.
        """
        dense = np.ascontiguousarray(array)
        data_type = _BY_STORAGE.get(dense.dtype.newbyteorder("<"))
        if data_type is None and dense.dtype == np.float64:
            data_type = DataType.F32
        if data_type is None:
            raise InvalidTensor(
                f"an array of {array.dtype} cannot be sent; convert it to float32, float16, "
                "uint8 or int64"
            )
        stored = dense.astype(data_type.storage, copy=False)
        return cls(TensorSpec(data_type, tuple(array.shape)), _bytes(stored, copy))


class HashedTensor(WireTensor):
    """A tensor of which only the hash is here; whoever was given the hash has the bytes."""

    def __init__(self, spec: TensorSpec) -> None:
        """`spec` has its hash."""
        object.__setattr__(self, "spec", spec)

    @property
    def data(self) -> bytes | memoryview:
        """Raises InvalidTensor."""
        raise InvalidTensor(
            f"the bytes of {self.spec} are not here, only their hash: encode the prompt again, "
            "without hashes_only where its values are needed"
        )


def _bf16_finite(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.not_equal(raw & _BF16_EXPONENT, _BF16_EXPONENT)
    return finite


def content_hash(data_type: DataType, shape: Sequence[int], data: bytes | memoryview) -> bytes:
    """SHA-256 over "<type>[<d0>,<d1>,...]" in ASCII and the bytes, as tensor.proto says."""
    digest = start_hash(TensorSpec(data_type, tuple(shape)))
    digest.update(data)
    return digest.digest()


def start_hash(spec: TensorSpec) -> hashlib._Hash:
    """The hash of `content_hash` before the bytes, for bytes that come in pieces."""
    return hashlib.sha256(f"{spec.data_type.label}[{','.join(map(str, spec.shape))}]".encode())


def as_wire(value: object, *, copy: bool = True) -> WireTensor:
    """A WireTensor from one, from a numpy array, or from a torch tensor without importing torch.

    Without `copy`, the value must stay as it is for as long as the result is used. Raises
    InvalidTensor for anything else.
    """
    if isinstance(value, WireTensor):
        return value
    if type(value).__module__.partition(".")[0] == "torch":
        return _from_torch_like(value, copy)
    return WireTensor.from_numpy(np.asarray(value), copy=copy)


def _from_torch_like(tensor: object, copy: bool) -> WireTensor:
    dense = tensor.detach().cpu().contiguous()  # type: ignore[attr-defined]
    if str(dense.dtype) == "torch.bfloat16":
        # numpy lacks bf16, and torch views it as int16 without knowing numpy.
        raw = dense.view(_torch_int16(dense)).numpy()
        return WireTensor(TensorSpec(DataType.BF16, tuple(dense.shape)), _bytes(raw, copy))
    return WireTensor.from_numpy(dense.numpy(), copy=copy)


def _bytes(dense: npt.NDArray[np.generic], copy: bool) -> bytes | memoryview:
    return dense.tobytes() if copy else dense.reshape(-1).view(np.uint8).data


def _torch_int16(tensor: object) -> object:
    import sys

    # The caller holds a torch tensor, so torch is imported already.
    return sys.modules[type(tensor).__module__.partition(".")[0]].int16
