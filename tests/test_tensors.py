"""Tensors on the wire: types, hashes, round trips, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmesh.errors import InvalidTensor, LimitExceeded
from ditmesh.tensors import (
    MAX_DIMENSIONS,
    DataType,
    TensorSpec,
    WireTensor,
    as_wire,
    content_hash,
)
from ditmesh.torch_tensors import as_torch, from_torch, to_torch
from ditmesh.v1 import tensor_pb2 as pb

TORCH = {
    DataType.F32: torch.float32,
    DataType.F16: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.U8: torch.uint8,
    DataType.I64: torch.int64,
}
SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@settings(deadline=None)
@given(data_type=st.sampled_from(list(DataType)), shape=SHAPES, data=st.data())
def test_any_bytes_go_to_torch_and_back_unchanged(
    data_type: DataType, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Every bit pattern survives, NaN payloads included; a scalar has the empty shape."""
    spec = TensorSpec(data_type, shape)
    raw = data.draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))
    tensor = to_torch(WireTensor(spec, raw))
    assert (tensor.dtype, tuple(tensor.shape)) == (TORCH[data_type], shape)
    assert from_torch(tensor) == WireTensor(spec, raw)
    assert as_wire(tensor) == WireTensor(spec, raw)


@settings(deadline=None)
@given(
    data_type=st.sampled_from([t for t in DataType if t is not DataType.BF16]),
    shape=SHAPES,
    data=st.data(),
)
def test_any_bytes_go_to_numpy_and_back_unchanged(
    data_type: DataType, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """The same for every type that numpy has."""
    spec = TensorSpec(data_type, shape)
    raw = data.draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))
    array = WireTensor(spec, raw).numpy()
    assert array.shape == shape
    assert WireTensor.from_numpy(array) == WireTensor(spec, raw)


def test_bf16_is_read_as_the_float32_of_the_same_value() -> None:
    """There is no bf16 in numpy; every value of it is a float32."""
    values = torch.tensor([[1.0, -2.5, 3e38], [0.0, -0.0, 1e-40]], dtype=torch.bfloat16)
    assert np.array_equal(as_wire(values).numpy(), values.float().numpy())


@pytest.mark.parametrize(
    ("array", "data_type"),
    [
        (np.zeros(3, ">f4"), DataType.F32),
        (np.zeros((2, 3)).T, DataType.F32),
        (np.arange(6).reshape(2, 3)[:, ::2], DataType.I64),
        (np.float32(3.0), DataType.F32),
    ],
)
def test_any_layout_travels_dense_and_little_endian(array: np.ndarray, data_type: DataType) -> None:
    """Big-endian, strided, double precision and scalar arrays arrive with the same values."""
    for copy in (True, False):
        wire = as_wire(array, copy=copy)
        assert wire.spec.data_type is data_type
        assert np.array_equal(wire.numpy(), array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_travels_as_it_is_need_not_be_copied(dtype: torch.dtype) -> None:
    """Without a copy the bytes are the value's own."""
    values = torch.zeros(2, 3, dtype=dtype)
    borrowed, copied = as_wire(values, copy=False), as_wire(values)
    assert borrowed == copied
    values += 1
    assert borrowed == as_wire(values) != copied


@pytest.mark.parametrize("value", [np.zeros(2, bool), np.zeros(2, np.int32), ["a"], object()])
def test_what_cannot_travel_is_refused_with_what_could(value: object) -> None:
    """The words say what to convert to."""
    with pytest.raises(InvalidTensor, match="float32, float16, uint8 or int64"):
        as_wire(value)


def test_a_tensor_that_requires_gradients_or_is_strided_is_copied_dense() -> None:
    """Neither autograd nor memory layout reach the wire."""
    tensor = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(to_torch(as_wire(tensor)), tensor.detach())
    assert torch.equal(to_torch(from_torch(tensor)), tensor.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_may_travel_where_it_is(dtype: torch.dtype) -> None:
    """Without a copy unless it must be made dense, and for nobody to change; else as it was."""
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    copied, there = from_torch(tensor), from_torch(tensor, copy=False)
    dense = from_torch(tensor.T, copy=False)
    assert there == copied
    assert isinstance(there.data, memoryview)
    assert there.data.readonly
    turned = from_torch(tensor.T)
    tensor += 1
    assert there == from_torch(tensor) != copied
    assert dense == turned


def test_torch_gets_memory_of_its_own() -> None:
    """Writing to the tensor leaves the wire's bytes alone: they may be cached under their hash."""
    wire = as_wire(torch.ones(4))
    to_torch(wire).zero_()
    assert np.array_equal(wire.numpy(), np.ones(4, np.float32))


def test_torch_shares_memory_that_nobody_else_can_write_to() -> None:
    """What others may write to, and what torch must not, it has a copy of."""
    spec = TensorSpec(DataType.U8, (4,))
    theirs = np.zeros(4, np.uint8)
    kept = memoryview(theirs).toreadonly()
    for data, shared in ((kept, True), (memoryview(theirs), False), (bytes(4), False)):
        tensor = as_torch(WireTensor(spec, data))
        theirs[0] += 1
        assert (tensor[0] == theirs[0]) == shared
    part = as_torch(WireTensor(TensorSpec(DataType.U8, (2,)), kept[2:]))
    assert part.tolist() == [0, 0]


def test_the_hash_is_the_one_that_the_contract_describes() -> None:
    """SHA-256 over "<type>[<d0>,<d1>]" and the bytes."""
    data = bytes(range(24))
    expected = hashlib.sha256(b"f32[2,3]" + data).digest()
    assert content_hash(DataType.F32, (2, 3), data) == expected
    assert WireTensor(TensorSpec(DataType.F32, (2, 3)), data).hashed().spec.sha256 == expected
    assert content_hash(DataType.U8, (), b"x") == hashlib.sha256(b"u8[]x").digest()


def test_the_hash_tells_types_and_shapes_apart() -> None:
    """The same bytes mean something else as another type or shape."""
    data = bytes(16)
    kinds = [(DataType.F32, (4,)), (DataType.F32, (2, 2)), (DataType.I64, (2,))]
    assert len({content_hash(*kind, data) for kind in kinds}) == 3


@pytest.mark.parametrize("data_type", [DataType.F32, DataType.F16, DataType.BF16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_found(data_type: DataType, value: float) -> None:
    """One among many, in every floating type."""
    tensor = torch.zeros(100, dtype=TORCH[data_type])
    assert from_torch(tensor).all_finite()
    tensor[57] = value
    assert not from_torch(tensor).all_finite()


def test_the_largest_finite_values_are_finite() -> None:
    """No overflow in looking."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert from_torch(torch.full((9,), torch.finfo(dtype).max, dtype=dtype)).all_finite()
    assert from_torch(torch.full((2,), 2**62)).all_finite()


@pytest.mark.parametrize("length", [0, 7, 9])
def test_bytes_that_do_not_fill_the_shape_are_refused(length: int) -> None:
    """A tensor never holds more or fewer bytes than it says."""
    with pytest.raises(InvalidTensor, match="8 bytes"):
        WireTensor(TensorSpec(DataType.F32, (2,)), bytes(length))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.TensorSpec(shape=[1]), "t.data_type"),
        (pb.TensorSpec(data_type=99, shape=[1]), "t.data_type"),  # type: ignore[arg-type]
        (pb.TensorSpec(data_type=pb.DATA_TYPE_F32, shape=[2, 0]), "t.shape"),
        (pb.TensorSpec(data_type=pb.DATA_TYPE_F32, shape=[-1]), "t.shape"),
        (pb.TensorSpec(data_type=pb.DATA_TYPE_F32, shape=[1] * (MAX_DIMENSIONS + 1)), "t.shape"),
        (pb.TensorSpec(data_type=pb.DATA_TYPE_F32, shape=[1], sha256=b"short"), "t.sha256"),
    ],
)
def test_a_bad_declaration_is_refused_by_its_field(message: pb.TensorSpec, field: str) -> None:
    """Type, shape and hash."""
    with pytest.raises(InvalidTensor) as caught:
        TensorSpec.from_proto(message, field="t", max_bytes=100)
    assert caught.value.field == field


def test_a_declaration_beyond_the_limit_is_refused_unallocated() -> None:
    """Even where the product of the extents is beyond all memory."""
    message = pb.TensorSpec(data_type=pb.DATA_TYPE_F32, shape=[2**62, 2**62])
    with pytest.raises(LimitExceeded, match="at most 100 bytes") as caught:
        TensorSpec.from_proto(message, field="t", max_bytes=100)
    assert caught.value.field == "t"


@settings(deadline=None)
@given(data_type=st.sampled_from(list(DataType)), shape=SHAPES)
def test_a_declaration_survives_the_wire(data_type: DataType, shape: tuple[int, ...]) -> None:
    """Spec to message and back."""
    spec = TensorSpec(data_type, shape, bytes(32))
    message = pb.TensorSpec.FromString(spec.to_proto().SerializeToString())
    assert TensorSpec.from_proto(message, field="t", max_bytes=1 << 20) == spec
