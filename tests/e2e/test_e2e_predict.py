"""Single transformer calls over one long stream, on eight ranks and on the local sampler."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ditmesh import rpc_status
from ditmesh.client import Conditioning, WeightPatch
from ditmesh.errors import InvalidTensor, UnknownModel
from ditmesh.exchange import Receiver, read_specs
from ditmesh.models import family, patches
from ditmesh.models.info import inspect
from ditmesh.models.model import LocalModel
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, sampler_pb2_grpc
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.e2e.cluster import MODEL, Cluster, processes_of
from tests.e2e.jobs import random_conditioning
from tests.sampling.golden_cases import CHECKPOINT, GOLDEN

pytestmark = pytest.mark.timeout(300)


class RawStream:
    """A stream as the contract has it, which also tells what the server asked for."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._outbox: queue.SimpleQueue[pb.PredictRequest | None] = queue.SimpleQueue()
        opening = pb.PredictOpen(model=MODEL, fallback=job_pb2.FALLBACK_POLICY_FORBID)
        self._outbox.put(pb.PredictRequest(open=opening))
        requests: Iterator[pb.PredictRequest] = iter(self._outbox.get, None)
        self._call: Any = sampler_pb2_grpc.SamplerServiceStub(self._channel).Predict(requests)

    def call(self, call_id: int, x: Any, conditioning: Conditioning) -> tuple[Any, list[int]]:
        """The answer to a call, and the tensors that had to be sent for it."""
        given = (x, conditioning.text, conditioning.pooled)
        tensors = [WireTensor.from_numpy(tensor).hashed() for tensor in given]
        call = pb.PredictCall(
            call_id=call_id,
            tensors=[tensor.spec.to_proto() for tensor in tensors],
            x=0,
            timestep=[0.5],
            conditioning=job_pb2.Conditioning(text=1, pooled=2, guidance=[3.5]),
        )
        self._outbox.put(pb.PredictRequest(call=call))
        sent: list[int] = []
        while (response := next(self._call)).HasField("needed"):
            sent += response.needed.tensors
            for chunk in chunks(tensors, sent):
                self._outbox.put(pb.PredictRequest(chunk=chunk))
        if response.HasField("error"):
            assert response.error.call_id == call_id
            raise rpc_status.from_status_bytes(response.error.status)
        assert response.result.call_id == call_id
        specs = read_specs([response.result.output], field="output", max_bytes=1 << 20)
        receiver = Receiver(specs, field="output")
        while not receiver.complete:
            receiver.feed(next(self._call).chunk)
        return receiver.tensors()[0].numpy(), sent

    def close(self) -> None:
        """End the stream."""
        self._outbox.put(None)
        self._channel.close()


@pytest.fixture
def raw(eight: Cluster) -> Iterator[RawStream]:
    stream = RawStream(eight.address)
    yield stream
    stream.close()


@pytest.mark.parametrize(("fallback", "executor"), [("forbid", "group"), ("local_only", "local")])
def test_comfyui_call(fallback: Any, executor: str, eight: Cluster) -> None:
    """A bare transformer call of ComfyUI, sigma and guidance of each batch item its own."""
    golden = load_file(GOLDEN / "flux_forward.safetensors")
    conditioning = Conditioning(
        golden["context"], golden["pooled"], guidance=golden["guidance"].tolist()
    )
    with eight.client.predict_stream(MODEL, fallback=fallback) as stream:
        for _ in range(3):
            velocity = stream.predict(golden["x"], golden["sigma"].tolist(), conditioning)
            assert stream.executor == executor
            assert np.abs(velocity - golden["velocity"]).max() <= 1e-5


def test_calls_of_all_shapes(eight: Cluster) -> None:
    """Calls whose size, text length and timestep change equal those of one process."""
    rng = np.random.default_rng(0)
    model = LocalModel.load(inspect(CHECKPOINT), device="cpu", dtype=torch.float32)
    with eight.client.predict_stream(MODEL) as stream:
        for batch, rows, columns, tokens in [(1, 8, 8, 16), (2, 6, 10, 5), (3, 2, 2, 77)]:
            x = rng.standard_normal((batch, 16, rows, columns), dtype=np.float32)
            sigma = rng.uniform(0.01, 1.0, batch).tolist()
            given = random_conditioning(rng, tokens=tokens)
            output = stream.predict(x, sigma, given)
            expected = model.predict(
                torch.from_numpy(x),
                torch.tensor(sigma),
                family.Conditioning(
                    torch.from_numpy(given.text), torch.from_numpy(given.pooled), given.guidance
                ),
            )
            assert stream.executor == "group"
            assert np.abs(output - expected.numpy()).max() <= 1e-5


def test_conditioning_is_sent_once(raw: RawStream) -> None:
    """Conditioning that the server has under its hash is not asked for again."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 16, 4, 4), dtype=np.float32)
    conditioning = random_conditioning(rng, tokens=9)
    first, sent = raw.call(1, x, conditioning)
    assert sent == [0, 1, 2]  # x, text, pooled
    other, sent = raw.call(2, -x, conditioning)
    assert sent == [0]
    again, sent = raw.call(3, x, conditioning)
    assert sent == []
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bad_call_does_not_end_the_stream(raw: RawStream) -> None:
    """A call that cannot be done is answered with its error; the next one is answered."""
    rng = np.random.default_rng(2)
    x, conditioning = np.ones((1, 16, 4, 4), np.float32), random_conditioning(rng, tokens=9)
    with pytest.raises(InvalidTensor, match="5 x 4") as odd:
        raw.call(1, np.ones((1, 16, 5, 4), np.float32), conditioning)
    assert odd.value.field == "call.x"
    with pytest.raises(InvalidTensor, match="NaN"):
        raw.call(2, np.full((1, 16, 4, 4), np.nan, np.float32), conditioning)
    output, _ = raw.call(3, x, conditioning)
    assert np.isfinite(output).all()


def test_unknown_model(eight: Cluster) -> None:
    """The error names the models that there are."""
    conditioning = random_conditioning(np.random.default_rng(3), tokens=1)
    with (
        eight.client.predict_stream("sdxl") as stream,
        pytest.raises(UnknownModel, match=MODEL),
    ):
        stream.predict(np.ones((1, 16, 4, 4), np.float32), 0.5, conditioning)


@pytest.mark.parametrize(("fallback", "executor"), [("forbid", "group"), ("local_only", "local")])
def test_calls_with_a_lora(fallback: Any, executor: str, eight: Cluster) -> None:
    """A stream's weight patches change its own calls, to the merged model's output, and no
    others: a stream without any beside it has the model as it is.
    """
    rng = np.random.default_rng(3)
    name = "double_blocks.0.img_attn.qkv.weight"
    up, down = (rng.standard_normal(s, dtype=np.float32) for s in ((768, 4), (4, 256)))
    x = rng.standard_normal((1, 16, 8, 8), dtype=np.float32)
    given = random_conditioning(rng, tokens=9)
    info = inspect(CHECKPOINT)
    model = LocalModel.load(info, device="cpu", dtype=torch.float32)

    def local() -> Any:
        text, pooled = torch.from_numpy(given.text), torch.from_numpy(given.pooled)
        guidance = torch.tensor(given.guidance) if given.guidance else None
        conditioning = family.Conditioning(text, pooled, guidance)
        return model.predict(torch.from_numpy(x), 0.7, conditioning).numpy()

    plain = local()
    low_rank = patches.LowRank(torch.from_numpy(up), torch.from_numpy(down))
    patches.merge(model.transformer, info, [patches.Patch(name, 0.5 * (2.0 / 4), low_rank)])
    merged = local()
    assert np.abs(merged - plain).max() > 0.1
    lora = [WeightPatch(name, 0.5, up=up, down=down, alpha=2.0)]
    with (
        eight.client.predict_stream(MODEL, fallback=fallback, weight_patches=lora) as patched,
        eight.client.predict_stream(MODEL, fallback=fallback) as unpatched,
    ):
        for _ in range(2):
            assert np.abs(patched.predict(x, [0.7], given) - merged).max() <= 1e-5
            assert patched.executor == executor
            assert np.abs(unpatched.predict(x, [0.7], given) - plain).max() <= 1e-5


def memory_of(stream: Any) -> Any:
    """What the stream's last call had in memory; None: nothing."""
    return stream._memory.message


@pytest.mark.parametrize("fallback", ["forbid", "local_only"])
def test_calls_by_way_of_memory_give_the_same_bits(
    fallback: Any, eight: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a client on another machine, which sends and is sent everything."""
    rng = np.random.default_rng(4)
    sizes = [(8, 8), (8, 8), (6, 10), (8, 8)]
    calls = [rng.standard_normal((1, 16, *size), dtype=np.float32) for size in sizes]
    given = random_conditioning(rng, tokens=9)
    with eight.client.predict_stream(MODEL, fallback=fallback) as stream:
        here = [(stream.predict(x, 0.7, given), memory_of(stream)) for x in calls]
    monkeypatch.setattr("ditmesh.client.prediction.host_id", lambda: "another")
    with eight.client.predict_stream(MODEL, fallback=fallback) as stream:
        there = [(stream.predict(x, 0.7, given), memory_of(stream)) for x in calls]
    assert [memory is not None for _, memory in here] == [False, True, True, True]
    assert not any(memory for _, memory in there)
    for (one, _), (other, _) in zip(here, there, strict=True):
        assert one.tobytes() == other.tobytes()


def test_calls_leave_no_files_and_no_memory(eight: Cluster) -> None:
    """Neither in the coordinator nor here, however many calls and streams there were."""
    rng = np.random.default_rng(5)
    x, given = np.ones((1, 16, 32, 32), np.float32), random_conditioning(rng, tokens=1)
    coordinator = coordinator_of(eight)

    def streams(count: int) -> None:
        for _ in range(count):
            with eight.client.predict_stream(MODEL, fallback="local_only") as stream:
                for _ in range(30):
                    stream.predict(x, 0.5, given)
                assert memory_of(stream) is not None

    streams(2)
    here = memory_files(os.getpid())
    files, nbytes = memory_files(coordinator), resident_bytes(coordinator)
    streams(7)
    eight.wait(lambda: memory_files(coordinator) <= files, "memory files to be closed")
    assert memory_files(os.getpid()) <= here
    assert resident_bytes(coordinator) - nbytes < 7 * 30 * x.nbytes / 2


def coordinator_of(cluster: Cluster) -> int:
    """The process that serves clients."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in processes_of(cluster._mark)}
    (found,) = [pid for pid, name in names.items() if name == "coordinator\n"]
    return found


def memory_files(pid: int) -> int:
    """How many memory files a process has open or mapped."""
    found = Path(f"/proc/{pid}/maps").read_text().count("memfd:ditmesh")
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "memfd:ditmesh" in os.readlink(fd)
    return found


def resident_bytes(pid: int) -> int:
    """What a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
