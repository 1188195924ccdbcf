"""How often a tensor is copied on its way. Whoever adds a copy changes a number here.

A copy needs memory to go to: counted are the bytes of all large allocations that a stage makes, by
Python, numpy, torch or protobuf, divided by those of the tensor. Memory that grows in place counts
once. What gRPC and the kernel copy is not counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import memray
import numpy as np
import pytest
import torch

from coordinator.services import client_memory
from ditmesh import chunk_messages, shared_memory, shared_tensors
from ditmesh.attached_memory import AttachedMemory
from ditmesh.client.conditioning import Conditioning
from ditmesh.client.prediction import PredictExchange
from ditmesh.client.sharing import SharedInputs
from ditmesh.client.stream_memory import StreamMemory
from ditmesh.exchange import Receiver
from ditmesh.executor.inputs import TensorReader
from ditmesh.output_rooms import OutputRoom, OutputRooms, write_output
from ditmesh.shared_memory import Memory
from ditmesh.shared_tensors import places_of, take_sealed
from ditmesh.tensors import DataType, TensorSpec, WireTensor, as_wire
from ditmesh.torch_tensors import as_torch, borrowed, from_torch, to_torch, write_torch
from ditmesh.v1 import node_pb2, sampler_pb2

T = TypeVar("T")

MIB = 1 << 20
LARGE = MIB // 4
TEXT = torch.zeros(1, 1024, 4096, dtype=torch.bfloat16)
"""8 MiB, in eight chunks."""
LATENT = torch.zeros(1, 16, 128, 128)
"""1 MiB, in one."""


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Callable[[], T], int], tuple[float, T]]:
    """Counts the copies that a function makes of so many bytes; and what it returned."""

    def count(act: Callable[[], T], nbytes: int) -> tuple[float, T]:
        # Once before: what is allocated for the first time only is not of interest.
        act()
        file = tmp_path / f"allocations-{len(list(tmp_path.iterdir()))}"
        with memray.Tracker(file, follow_fork=False):
            result = act()
        return allocated(file) / nbytes, result

    return count


def allocated(file: Path) -> int:
    """Bytes of large allocations; of memory that grows step by step, its last size."""
    kinds = memray.AllocatorType
    total = grown = 0
    with memray.FileReader(file) as reader:
        for record in reader.get_allocation_records():
            if record.size < LARGE:
                continue
            if record.allocator == kinds.REALLOC:
                grown = max(grown, record.size)
            elif record.allocator in (kinds.MALLOC, kinds.CALLOC):
                total += record.size
    return total + grown


Count = Callable[[Callable[[], Any], int], tuple[float, Any]]


def wire(tensor: torch.Tensor) -> WireTensor:
    return as_wire(tensor).hashed()


def sent(tensor: WireTensor) -> list[bytes]:
    """What a client gives to gRPC."""
    messages = chunk_messages.chunk_messages(sampler_pb2.SampleRequest, [tensor], [0])
    serialize = chunk_messages._serializer(sampler_pb2.SampleRequest.SerializeToString)
    return [serialize(message) for message in messages]


def received(tensor: WireTensor, messages: list[bytes]) -> WireTensor:
    """What a server makes of what gRPC gives it."""
    deserialize = chunk_messages._deserializer(sampler_pb2.SampleRequest.FromString)
    receiver = Receiver([tensor.spec], field="t")
    for message in messages:
        receiver.feed(deserialize(message).chunk)
    return receiver.tensors()[0]


def near(copies: float) -> int:
    """The whole number that it is, but for headers and the beginning of what grows."""
    assert abs(copies - round(copies)) < 0.15, copies
    return round(copies)


def test_the_count_counts(copies: Count) -> None:
    """A copy is one, none is none, and of protobuf's own way of a chunk there are many."""
    data = np.zeros(4 * MIB, np.uint8)
    assert near(copies(lambda: data.copy(), data.nbytes)[0]) == 1
    assert near(copies(lambda: data[1:], data.nbytes)[0]) == 0

    def by_protobuf() -> Any:
        chunk = node_pb2.RunRequest()
        chunk.chunk.data = data[:MIB].tobytes()
        return node_pb2.RunRequest.FromString(chunk.SerializeToString()).chunk.data

    assert copies(by_protobuf, MIB)[0] >= 5


def test_a_conditioning_is_read_once(copies: Count) -> None:
    """From torch to wire it stays where it is; hashing looks at it there."""
    found, _ = copies(lambda: Conditioning(TEXT).wire, TEXT.nbytes)
    assert near(found) == 0


def test_sending_joins_each_chunk_once(copies: Count) -> None:
    """The client's way, which is the coordinator's and the node's too."""
    tensor = wire(TEXT)
    found, messages = copies(lambda: sent(tensor), TEXT.nbytes)
    assert near(found) == 1
    assert len(messages) == 8


def test_receiving_puts_chunks_together_once(copies: Count) -> None:
    """A tensor of a single chunk, such as a latent, is looked at where gRPC has it."""
    for given, expected in ((TEXT, 1), (LATENT, 0)):
        tensor = wire(given)
        messages = sent(tensor)
        found, result = copies(lambda t=tensor, m=messages: received(t, m), given.nbytes)
        assert near(found) == expected
        assert result == tensor


def test_shared_memory_is_read_in_place(copies: Count) -> None:
    """Written by the kernel, and mapped."""
    tensor = wire(TEXT)

    def share() -> Any:
        with Memory() as memory:
            places = [(memory.add(tensor), tensor.spec.nbytes)]
            memory.publish()
            return shared_memory.read(os.getpid(), memory.fd, memory.token, places)

    found, (data,) = copies(share, TEXT.nbytes)
    assert near(found) == 0
    assert data == tensor.data


def test_what_is_new_in_a_call_is_where_both_processes_have_it_mapped(copies: Count) -> None:
    """It is written and read in place, by torch too, which writes the output so. What outlives the
    call is copied out: the next one has the memory.
    """
    tensor = wire(LATENT)
    with Memory() as memory:
        at = memory.leave_room(LATENT.nbytes)
        ours = memory.map()[at:]
        theirs = shared_memory.attach(os.getpid(), memory.fd, memory.token)[at:]

        def write() -> None:
            ours[: LATENT.nbytes] = tensor.data

        found, _ = copies(write, LATENT.nbytes)
        assert near(found) == 0
        received = WireTensor(tensor.spec, theirs[: LATENT.nbytes])
        assert received == tensor
        found, x = copies(lambda: borrowed(received), LATENT.nbytes)
        assert near(found) == 0
        assert torch.equal(x, LATENT)
        answer = torch.full(LATENT.shape, 2.0, dtype=torch.bfloat16)
        found, output = copies(lambda: write_torch(answer, LATENT.dtype, theirs), LATENT.nbytes)
        assert near(found) == 0
        assert bytes(ours[: LATENT.nbytes]) == wire(answer.float()).data
        assert output.spec == from_torch(LATENT).spec
        ours[: LATENT.nbytes] = tensor.data
        found, copy = copies(lambda: as_torch(received), LATENT.nbytes)
        assert near(found) == 1
        ours[: LATENT.nbytes] = bytes(range(256)) * (LATENT.nbytes // 256)
        assert torch.equal(copy, LATENT)


def test_a_call_of_a_client_on_this_machine_is_copied_out_of_its_memory_once(copies: Count) -> None:
    """The client's own memory is written in place. What the coordinator has checked nobody can
    change, and the answer is the caller's.
    """
    tensor = wire(LATENT)
    plain = WireTensor(TensorSpec(tensor.spec.data_type, tensor.spec.shape), tensor.data)
    memory, attached = StreamMemory(), AttachedMemory()
    memory.offered()
    exchange = PredictExchange(1, LATENT, 0.5, Conditioning(torch.zeros(1, 1, 1)))

    def ask() -> Any:
        for _ in exchange.place(memory):
            pass
        (request,) = exchange.opening()
        return request

    found, request = copies(ask, LATENT.nbytes)
    assert near(found) == 0

    def take() -> WireTensor:
        views = attached.of(request.memory)
        assert views is not None
        receiver = Receiver([plain.spec], field="t")
        asyncio.run(client_memory.take(views, receiver, unasked=0, field="t"))
        return receiver.tensors()[0]

    found, came = copies(take, LATENT.nbytes)
    assert near(found) == 1
    assert came == plain

    def answer() -> Any:
        views = attached.of(request.memory)
        assert views is not None
        assert asyncio.run(client_memory.give(views, came))
        output = plain.spec.to_proto()
        result = sampler_pb2.PredictResult(call_id=1, output=output)
        return sampler_pb2.PredictResponse(result=result, written=True)

    found, response = copies(answer, LATENT.nbytes)
    assert near(found) == 0

    def read() -> Any:
        list(exchange.receive(response))
        return exchange.answer()

    found, output = copies(read, LATENT.nbytes)
    assert near(found) == 1
    assert np.array_equal(output, LATENT.numpy())


def test_an_input_of_a_client_on_this_machine_is_never_copied(copies: Count) -> None:
    """The kernel writes it to the client's memory. There the coordinator looks through it, and
    there the ranks have it.
    """
    tensor = wire(TEXT)

    def share() -> Any:
        shared = SharedInputs([tensor])
        return shared, shared.share([0])

    found, (shared, where) = copies(share, TEXT.nbytes)
    assert near(found) == 0

    def take() -> WireTensor:
        receiver = Receiver([tensor.spec], field="t")
        take_sealed(receiver, where)
        return receiver.tensors()[0]

    found, came = copies(take, TEXT.nbytes)
    assert near(found) == 0
    shared.close()
    passed_on = places_of({0: came})
    assert passed_on is not None

    def use() -> Any:
        receiver = Receiver([tensor.spec], field="t")
        shared_tensors.take(receiver, passed_on)
        return TensorReader(receiver.tensors(), torch.device("cpu"))[0]

    found, used = copies(use, TEXT.nbytes)
    assert near(found) == 0
    assert torch.equal(used, TEXT)


def test_a_result_on_this_machine_is_copied_out_of_each_room_once(copies: Count) -> None:
    """Twice from a rank to a client: the coordinator keeps it, and the client has its own. A rank
    on a CPU sends it from where it is.
    """
    rooms = OutputRooms()
    latent = torch.randn(LATENT.shape)
    found, tensor = copies(lambda: from_torch(latent, copy=False), LATENT.nbytes)
    assert near(found) == 0
    for _ in ("coordinator", "client"):
        room = rooms.take(LATENT.nbytes)
        assert room is not None

        def write(room: OutputRoom = room, tensor: WireTensor = tensor) -> bool:
            return write_output(room.message, tensor.data)

        found, written = copies(write, LATENT.nbytes)
        assert written
        assert near(found) == 0

        def read(room: OutputRoom = room, spec: TensorSpec = tensor.spec) -> WireTensor:
            room.expect()
            return WireTensor(spec, room.read())

        found, tensor = copies(read, LATENT.nbytes)
        assert near(found) == 1
    found, array = copies(tensor.numpy, LATENT.nbytes)
    assert near(found) == 0
    assert np.array_equal(array, latent.numpy())
    assert array.flags.writeable


def test_a_rank_on_a_cpu_uses_an_input_where_it_came(copies: Count) -> None:
    """Shared memory and what was put together from chunks, however often it is used."""
    tensor = wire(TEXT)
    with Memory() as memory:
        place = memory.add(tensor), tensor.spec.nbytes
        memory.publish()
        (mapped,) = shared_memory.read(os.getpid(), memory.fd, memory.token, [place])
    for came in (WireTensor(tensor.spec, mapped), received(tensor, sent(tensor))):

        def use(came: WireTensor = came) -> Any:
            reader = TensorReader([came], torch.device("cpu"))
            return [reader[0], reader[0]]

        found, (used, _) = copies(use, TEXT.nbytes)
        assert near(found) == 0
        assert torch.equal(used, TEXT)


def test_an_input_that_torch_cannot_use_in_place_is_copied_once(copies: Count) -> None:
    """Bytes as gRPC has them, which nobody may write to."""
    tensor = wire(TEXT)

    def use() -> Any:
        reader = TensorReader([tensor], torch.device("cpu"))
        return [reader[0], reader[0]]

    assert near(copies(use, TEXT.nbytes)[0]) == 1


def test_a_result_is_copied_off_its_device_once(copies: Count) -> None:
    """A client that has it sees it where gRPC put it, until it makes an array of its own."""
    found, tensor = copies(lambda: from_torch(LATENT), LATENT.nbytes)
    assert near(found) == 1
    messages = sent(tensor)
    result = received(tensor, messages)
    found, array = copies(result.numpy, LATENT.nbytes)
    assert near(found) == 0
    assert np.array_equal(array, LATENT.numpy())


def test_bf16_is_widened_once_for_numpy(copies: Count) -> None:
    """Numpy has no bf16: two bytes a value become four."""
    data = bytes(4 * MIB)
    tensor = WireTensor(TensorSpec(DataType.BF16, (2 * MIB,)), data)
    found, _ = copies(tensor.numpy, 2 * len(data))
    assert near(found) == 2  # widened, then shifted


def test_looking_for_what_is_not_finite_needs_little(copies: Count) -> None:
    """It goes block by block."""
    tensor = wire(TEXT)
    found, finite = copies(tensor.all_finite, TEXT.nbytes)
    assert finite
    assert near(found) == 0
    assert to_torch(tensor).isfinite().all()
