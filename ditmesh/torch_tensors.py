"""The one place where wire tensors become torch tensors and back."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt
import torch

from ditmesh.tensors import DataType, TensorSpec, WireTensor

_TORCH = {
    DataType.F32: torch.float32,
    DataType.F16: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.U8: torch.uint8,
    DataType.I64: torch.int64,
}
_WIRE = {dtype: data_type for data_type, dtype in _TORCH.items()}


def to_torch(tensor: WireTensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """A torch tensor of its own memory, same dtype and shape, on `device`."""
    # frombuffer shares memory and warns of read-only bytes: the copy is wanted anyway.
    flat = torch.frombuffer(bytearray(tensor.data), dtype=_TORCH[tensor.spec.data_type])
    return flat.reshape(tensor.spec.shape).to(device)


def as_torch(tensor: WireTensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """As `to_torch`, for who only reads it: on a CPU it may be the memory that the bytes came in.

    Only bytes that stay as they are: those of memory that others may write to are copied.
    """
    beneath = _beneath(tensor.data)
    if beneath is None:
        return to_torch(tensor, device)
    flat = torch.frombuffer(beneath, dtype=_TORCH[tensor.spec.data_type])
    return flat.reshape(tensor.spec.shape).to(device)


def borrowed(tensor: WireTensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """As `as_torch`, in place too where others may write to the memory: for who is done with it
    before they do.
    """
    if not isinstance(tensor.data, memoryview) or tensor.data.readonly:
        return as_torch(tensor, device)
    flat = torch.frombuffer(tensor.data, dtype=_TORCH[tensor.spec.data_type])
    return flat.reshape(tensor.spec.shape).to(device)


def _beneath(data: bytes | memoryview) -> mmap.mmap | npt.NDArray[np.uint8] | None:
    """What torch can use in place. It warns of what cannot be written to, such as `bytes`."""
    if not isinstance(data, memoryview) or not data.readonly:
        return None
    whole = data.obj
    if isinstance(whole, (mmap.mmap, np.ndarray)) and len(whole) == data.nbytes:
        return whole
    return None


def from_torch(tensor: torch.Tensor, *, copy: bool = True) -> WireTensor:
    """The tensor's bytes, without a hash. Raises KeyError for a dtype that does not travel.

    Without `copy`, they may be the tensor's own memory, which must stay as it is.
    """
    data_type = _WIRE[tensor.dtype]
    dense = tensor.detach().cpu().contiguous()
    raw = dense.reshape(-1).view(torch.uint8).numpy()
    spec = TensorSpec(data_type, tuple(tensor.shape))
    return WireTensor(spec, raw.tobytes() if copy else raw.data.toreadonly())


def write_torch(tensor: torch.Tensor, dtype: torch.dtype, into: memoryview) -> WireTensor:
    """As `from_torch` of the tensor in that dtype, its bytes written to the beginning of `into`.

    Raises KeyError for a dtype that does not travel, and ValueError for too little room.
    """
    data = into[: tensor.numel() * dtype.itemsize]
    there = torch.frombuffer(data, dtype=dtype, count=tensor.numel())
    there.reshape(tensor.shape).copy_(tensor)
    return WireTensor(TensorSpec(_WIRE[dtype], tuple(tensor.shape)), data)
