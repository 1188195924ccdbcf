"""A client on the coordinator's machine shares memory with it, which no result shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import grpc
import numpy as np
import pytest

from ditmesh.client import Client
from ditmesh.tensors import as_wire
from ditmesh.v1 import pipeline_pb2, pipeline_pb2_grpc
from tests.e2e.cluster import DEMO_MODEL, Cluster, processes_of
from tests.e2e.jobs import random_conditioning, random_job

pytestmark = pytest.mark.timeout(300)

SIZE = (1, 32, 32)
"""Its latent has 64 KiB: enough to be written to memory."""

_KILLED = """
import sys
from tests.e2e.jobs import random_job
from ditmesh.client import Client, Progress
client = Client(sys.argv[1])
for seed in (1, 2):
    client.sample(**random_job(seed, size=(1, 32, 32), steps=1))
for event in client.start(**random_job(3, size=(1, 32, 32), steps=10_000)):
    if isinstance(event, Progress):
        print("steps", flush=True)
"""


def elsewhere(cluster: Cluster) -> Client:
    """A client whose memory the coordinator cannot see."""
    client = Client(cluster.address)
    client._sharing.host = "another machine"
    return client


def test_memory_and_the_network_give_the_same_bits(two: Cluster) -> None:
    """Of a latent of 4 MiB each way, and of the state that comes beside it."""
    rng = np.random.default_rng(1)
    jobs = []
    for seed in (1, 2):
        job = random_job(seed, steps=2, denoise=0.5, return_state=True)
        del job["size"]
        jobs.append({**job, "latent": rng.standard_normal((64, 16, 32, 32), np.float32)})
    with Client(two.address) as near, elsewhere(two) as far:
        # What is in no store comes in pieces once, and once out of the client's memory.
        order = [(far, jobs[0]), (near, jobs[0]), (near, jobs[1]), (far, jobs[1])]
        results = [client.sample(**job) for client, job in order]
        assert [bool(client._sharing.rooms._idle) for client in (far, near)] == [False, True]
        assert [client._sharing._server_reads for client in (far, near)] == [False, True]
    assert not np.shares_memory(results[1].latent, results[2].latent)
    for one, other in (results[:2], results[2:]):
        assert one.latent.nbytes == 4 << 20
        assert one.latent.tobytes() == other.latent.tobytes()
        assert one.state is not None
        assert other.state is not None
        assert one.state.state == other.state.state
        for mine, theirs in zip(one.state.tensors, other.state.tensors, strict=True):
            assert bytes(mine.data) == bytes(theirs.data)


def test_a_latent_that_was_written_is_decoded_without_an_upload(two: Cluster) -> None:
    """Its hash did not come with it; the coordinator has it soon all the same."""
    with Client(two.address) as client:
        latent = client.sample(**random_job(2, size=SIZE)).latent
        assert client._sharing.rooms._idle
    request = pipeline_pb2.DecodeLatentRequest(
        latent=pipeline_pb2.LatentToDecode(
            model=DEMO_MODEL, latent=as_wire(latent).hashed().spec.to_proto()
        )
    )

    def asked_for() -> bool:
        with grpc.insecure_channel(two.address) as channel:
            call = pipeline_pb2_grpc.PipelineServiceStub(channel).DecodeLatent(iter([request]))
            needed = bool(next(call).needed.tensors)
            call.cancel()
            return needed

    two.wait(lambda: not asked_for(), "the hash of a result")


def test_a_client_that_is_killed_harms_nobody(two: Cluster) -> None:
    """With its inputs in the ranks' hands and room for a result that nobody will read."""
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, two.address], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"steps\n"
        finally:
            process.send_signal(signal.SIGKILL)
    epoch = two.snapshot().group.epoch
    job = random_job(4, size=SIZE, fallback="forbid")
    result = two.client.sample(**job)
    with elsewhere(two) as far:
        assert far.sample(**job).latent.tobytes() == result.latent.tobytes()
    assert two.snapshot().group.epoch == epoch


def test_jobs_leave_no_files_open(two: Cluster) -> None:
    """A hundred of them, with new text each: in no process do files or memory files grow."""
    rng = np.random.default_rng(5)

    def jobs(client: Client, count: int) -> None:
        for number in range(count):
            text = random_conditioning(rng, tokens=1024)
            client.sample(**random_job(number, size=SIZE, steps=1, positive=text))

    with Client(two.address) as client:
        jobs(client, 30)
        before = open_files(two)
        jobs(client, 100)
        after = open_files(two)
        assert client._sharing._server_reads
    grown = after - before
    # A connection or an idle room may come and go.
    assert sum(grown.values()) < 20, grown


def open_files(cluster: Cluster) -> Counter[Any]:
    """How many of which kind each process has, this one included."""
    found: Counter[Any] = Counter()
    for pid in (os.getpid(), *processes_of(cluster._mark)):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue  # closed meanwhile
            found[pid, link.partition(":")[0] if ":" in link else "file"] += 1
    return found
