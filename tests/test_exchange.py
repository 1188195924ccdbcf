"""How tensors cross a stream: order, sizes, hashes, what is asked for and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, InvalidTensor, LimitExceeded, ProtocolError
from ditmesh.exchange import CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_TENSORS, Receiver, read_specs
from ditmesh.tensors import DataType, TensorSpec, WireTensor
from ditmesh.v1 import tensor_pb2 as pb
from tests.chunks import chunks


def tensor(size: int, value: int = 1) -> WireTensor:
    return WireTensor.from_numpy(np.full(size, value, np.uint8))


def receiver(tensors: Iterable[WireTensor], **options: object) -> Receiver:
    return Receiver([t.spec for t in tensors], field="t", **options)  # type: ignore[arg-type]


sizes = st.lists(
    st.sampled_from([1, 5, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]),
    max_size=3,
)


@settings(max_examples=15, deadline=None)
@given(sizes=sizes, hashed=st.lists(st.booleans(), min_size=3, max_size=3))
def test_what_is_sent_arrives(sizes: list[int], hashed: list[bool]) -> None:
    """Any sizes around the chunk's, with and without hashes, in as few chunks as possible."""
    tensors = [tensor(size, i) for i, size in enumerate(sizes)]
    tensors = [t.hashed() if h else t for t, h in zip(tensors, hashed, strict=False)]
    side = receiver(tensors)
    sent = list(chunks(tensors, side.needed))
    for chunk in sent:
        side.feed(chunk)
    assert side.tensors() == tuple(tensors)
    assert len(sent) == sum(-(-size // CHUNK_BYTES) for size in sizes)
    assert all(len(chunk.data) <= CHUNK_BYTES for chunk in sent)


def test_nothing_declared_needs_nothing() -> None:
    """An empty table is complete at once."""
    assert receiver([]).complete
    assert receiver([]).tensors() == ()


def test_tensors_that_the_store_holds_are_not_asked_for() -> None:
    """And what comes with a hash is there the next time, for the same scope only."""
    store, tensors = ContentStore(100), [tensor(4, 1).hashed(), tensor(4, 2), tensor(4, 3).hashed()]
    first = receiver(tensors, store=store, scope="a")
    assert first.needed == (0, 1, 2)
    for chunk in chunks(tensors, first.needed):
        first.feed(chunk)
    again = receiver(tensors, store=store, scope="a")
    assert again.needed == (1,)
    for chunk in chunks(tensors, again.needed):
        again.feed(chunk)
    assert again.tensors() == tuple(tensors)
    assert receiver(tensors, store=store, scope="b").needed == (0, 1, 2)


def test_a_tensor_that_stands_twice_is_asked_for_once() -> None:
    """Positive and negative conditioning are often the same."""
    one, other = tensor(4, 1).hashed(), tensor(4, 2)
    side = receiver([one, other, one])
    assert side.needed == (0, 1)
    for chunk in chunks([one, other, one], side.needed):
        side.feed(chunk)
    assert side.tensors() == (one, other, one)


def test_a_hash_under_another_shape_is_no_twin() -> None:
    """Otherwise a tensor would pass the shape checks as something that it is not."""
    true = tensor(4).hashed()
    lie = TensorSpec(DataType.U8, (2, 2), true.spec.sha256)
    side = Receiver([true.spec, lie], field="t")
    assert side.needed == (0, 1)
    side.feed(pb.TensorChunk(tensor=0, data=true.data))
    with pytest.raises(InvalidTensor, match="sha256") as caught:
        side.feed(pb.TensorChunk(tensor=1, data=true.data))
    assert caught.value.field == "t[1]"


def test_a_held_hash_under_another_shape_is_asked_for_and_refused() -> None:
    """The store's copy is not handed out under a false declaration either."""
    store, true = ContentStore(100), tensor(4).hashed()
    store.put("", true)
    lie = TensorSpec(DataType.U8, (2, 2), true.spec.sha256)
    side = Receiver([lie], field="t", store=store)
    assert side.needed == (0,)
    with pytest.raises(InvalidTensor, match="sha256"):
        side.feed(pb.TensorChunk(data=true.data))


def test_bytes_that_do_not_match_their_hash_are_refused_and_not_kept() -> None:
    """The receiver computes the hash itself."""
    store, declared = ContentStore(100), tensor(4, 1).hashed()
    side = receiver([declared], store=store)
    with pytest.raises(InvalidTensor, match="sha256") as caught:
        side.feed(pb.TensorChunk(data=tensor(4, 2).data))
    assert caught.value.field == "t[0]"
    assert store.nbytes == 0


@pytest.mark.parametrize(
    ("chunk", "error", "words"),
    [
        (pb.TensorChunk(tensor=1, data=b"x"), ProtocolError, r"expected byte 0 of t\[0\]"),
        (pb.TensorChunk(offset=1, data=b"x"), ProtocolError, r"expected byte 0 of t\[0\]"),
        (pb.TensorChunk(data=b""), ProtocolError, "0 bytes"),
        (pb.TensorChunk(data=bytes(5)), InvalidTensor, "more were sent"),
    ],
)
def test_a_chunk_out_of_place_is_refused(
    chunk: pb.TensorChunk, error: type[DitmeshError], words: str
) -> None:
    """Another tensor, a gap, an empty chunk, more bytes than declared."""
    side = receiver([tensor(4), tensor(4)])
    with pytest.raises(error, match=words):
        side.feed(chunk)


def test_a_chunk_above_the_limit_is_refused() -> None:
    """2 MiB, so that no message comes near gRPC's own limit."""
    side = receiver([tensor(MAX_CHUNK_BYTES + 1)])
    with pytest.raises(ProtocolError, match=str(MAX_CHUNK_BYTES)):
        side.feed(pb.TensorChunk(data=bytes(MAX_CHUNK_BYTES + 1)))


def test_a_chunk_too_many_is_refused() -> None:
    """Nothing is taken that was not asked for."""
    side = receiver([tensor(1)])
    side.feed(pb.TensorChunk(data=b"x"))
    with pytest.raises(ProtocolError, match="not asked for"):
        side.feed(pb.TensorChunk(data=b"x"))


def test_an_incomplete_tensor_is_told_with_what_came() -> None:
    """The words say how far it got."""
    side = receiver([tensor(4), tensor(4)])
    side.feed(pb.TensorChunk(data=bytes(4)))
    side.feed(pb.TensorChunk(tensor=1, data=bytes(3)))
    assert not side.complete
    with pytest.raises(ProtocolError, match=r"t\[1\] was whole: 3 of 4 bytes"):
        side.tensors()


@settings(deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=20))
def test_any_cut_into_chunks_gives_the_same_bytes(cuts: list[int]) -> None:
    """Senders choose the size of their chunks."""
    data = bytes(i % 256 for i in range(sum(cuts)))
    whole = WireTensor(TensorSpec(DataType.U8, (len(data),)), data).hashed()
    side, start = receiver([whole]), 0
    for cut in cuts:
        side.feed(pb.TensorChunk(offset=start, data=data[start : start + cut]))
        start += cut
    (came,) = side.tensors()
    assert came.spec == whole.spec
    assert bytes(came.data) == data


def test_memory_grows_with_the_bytes_that_came() -> None:
    """Neither a large declaration nor tiny chunks cost more than a little beyond their bytes."""
    tracemalloc.start()
    try:
        side = Receiver([TensorSpec(DataType.U8, (1 << 30,))], field="t")
        for offset in range(0, 8_000, 2):
            side.feed(pb.TensorChunk(offset=offset, data=b"xy"))
        assert tracemalloc.get_traced_memory()[0] < 24_000
    finally:
        tracemalloc.stop()


def test_a_table_beyond_its_limits_is_refused() -> None:
    """In number, and in bytes together although each would fit."""
    one = tensor(60).spec.to_proto()
    assert len(read_specs([one], field="t", max_bytes=100)) == 1
    with pytest.raises(LimitExceeded, match="120 bytes in all") as caught:
        read_specs([one, one], field="t", max_bytes=100)
    assert caught.value.field == "t"
    with pytest.raises(LimitExceeded, match=f"at most {MAX_TENSORS}"):
        read_specs([tensor(1).spec.to_proto()] * (MAX_TENSORS + 1), field="t", max_bytes=1 << 20)
    with pytest.raises(LimitExceeded) as caught:
        read_specs([one, tensor(101).spec.to_proto()], field="t", max_bytes=100)
    assert caught.value.field == "t[1]"
