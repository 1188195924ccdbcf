"""What suites are made of does what it says: servers, models without weights, formulas."""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from bench import flux_shaped, machine, synthetic
from bench.rank_group import Work
from bench.servers import ECHO, OPTIONS, PUSH, RawConnection, Servers, push_chunks
from bench.suites.scaling import ulysses_bytes
from ditmesh.models.info import inspect
from ditmesh.v1 import tensor_pb2


def test_relays_pass_bytes_on_and_answers_back() -> None:
    """Raw and gRPC, to every target; a client hears when all have them."""
    data = bytes(range(256)) * 1000
    with (
        Servers("sink", 2) as sinks,
        Servers("relay", targets=sinks.addresses) as relay,
        Servers("grpc-sink", 2) as grpc_sinks,
        Servers("grpc-relay", targets=grpc_sinks.addresses) as grpc_relay,
        Servers("grpc-aio-relay", targets=grpc_sinks.addresses) as aio_relay,
    ):
        raw = RawConnection(relay.addresses[0])
        raw.send(data)
        assert raw.answer() == b"\1"
        raw.send(data, echo=True)
        assert raw.answer(len(data)) == data
        raw.close()
        for address in (*grpc_relay.addresses, *aio_relay.addresses):
            with grpc.insecure_channel(address, OPTIONS) as channel:
                assert channel.unary_unary(ECHO)(data) == data
        with grpc.insecure_channel(grpc_sinks.addresses[0], OPTIONS) as channel:
            push = channel.stream_unary(
                PUSH, request_serializer=tensor_pb2.TensorChunk.SerializeToString
            )
            assert push(push_chunks(data, 1000)) == b"\1"


def test_a_model_without_weights_is_one_of_fluxs_size(tmp_path: Path) -> None:
    """The coordinator takes it for Flux.1-dev, and it takes no room."""
    flux_shaped.write_model(tmp_path / "flux", flux_shaped.FLUX_DEV)
    info = inspect(tmp_path / "flux")
    assert round(info.num_parameters / 1e9, 1) == 11.9
    assert info.weight_bytes == 2 * info.num_parameters
    assert sum(file.stat().st_blocks for file in info.files) * 512 < 1 << 20


def test_calls_of_the_transformer_are_read_whole(tmp_path: Path) -> None:
    """One that is being written does not count yet."""
    path = tmp_path / "calls"
    assert synthetic.read_calls(path) == []
    path.write_bytes(synthetic._CALL.pack(1, 2) + synthetic._CALL.pack(3, 4)[:9])
    assert synthetic.read_calls(path) == [(1, 2)]


def test_ulysses_bytes() -> None:
    """None alone; by hand for two: 3 blocks, 512 tokens of width 256, and 256 tokens of 64."""
    work = Work(32, 32, 256)
    assert ulysses_bytes(work, 1) == 0
    assert ulysses_bytes(work, 2) == 4 * (4 * 3 * 256 * 256 / 2 + 256 * 64 / 2)


def test_what_is_said_of_a_process_is_its_own() -> None:
    """Its children, its processor time, its memory."""
    with Servers("sink") as sinks:
        (pid,) = (p.pid for p in sinks._processes)
        assert pid in machine.children(os.getpid())
        assert machine.cpu_seconds(pid) > 0
        assert 0 < machine.resident_bytes(pid) < 1 << 30
    assert pid not in machine.children(os.getpid())
