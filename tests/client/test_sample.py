"""What jobs of both clients send and get, of a coordinator that follows the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ditmesh.client import (
    FLUX,
    Client,
    Conditioning,
    Progress,
)
from ditmesh.errors import (
    InternalError,
    InvalidTensor,
)
from ditmesh.v1 import sampler_pb2 as pb
from tests.client.conftest import Call
from tests.client.fake import STEPS, Fake


def test_result(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A job gives its latent as float32 that may be written to, and who did what."""
    result = call("sample", seed=5, **job)
    np.testing.assert_array_equal(result.latent, np.full((1, 16, 4, 6), STEPS + 5, np.float32))
    assert result.latent.dtype == np.float32
    assert result.latent.flags.writeable
    assert result.state is None
    segment, fallback = result.summary.segments[0], result.summary.fallbacks[0]
    assert (segment.executor, segment.mesh, segment.end_step) == ("group", "ulysses=8", STEPS)
    assert (fallback.source, fallback.target, fallback.reason) == ("group", "local", "GROUP_LOST")
    assert fake.streams[0].kinds == ["job", "chunk"]


def test_latent_format_goes_both_ways(call: Call, job: dict[str, Any]) -> None:
    """With a latent format, latents are in the autoencoder's space on both sides of the call."""
    latent = np.full((1, 16, 4, 6), 3.0, np.float32)
    result = call("sample", **{**job, "size": None}, latent=latent, latent_format=FLUX)
    # The fake adds 1 a step in model space.
    np.testing.assert_allclose(result.latent, 3.0 + STEPS / FLUX.scale, rtol=1e-5)


def test_progress_and_previews(call: Call, job: dict[str, Any]) -> None:
    """Each step is told, with a picture whenever one is due."""
    told: list[Progress] = []
    call("sample", **job, preview_every=2, on_progress=told.append)
    assert [(p.step, p.steps, p.executor) for p in told] == [(i, 4, "group") for i in (1, 2, 3, 4)]
    assert [p.sigma for p in told] == [0.75, 0.5, 0.25, 0.0]
    pictures = [p.preview for p in told]
    assert [picture is not None for picture in pictures] == [False, True, False, True]
    np.testing.assert_array_equal(pictures[1], np.full((1, 2, 2, 3), 2, np.uint8))


def test_returned_state_can_be_continued(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """The state of one result is the start of another job."""
    first = call("sample", **job, return_state=True)
    call("sample", **job, state=first.state)
    sent = list(fake.jobs.values())[1].spec
    assert sent.state.step == STEPS
    tensors = list(fake.jobs.values())[1].tensors
    np.testing.assert_array_equal(tensors[sent.state.latent].numpy(), first.latent)
    assert tensors[sent.state.history["d"]].spec.shape == (1, 1)


def test_conditioning_is_sent_once(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A tensor that the server has is not sent again, by a new client neither."""
    call("sample", **job)
    call("sample", **job, seed=1)
    assert fake.needed == [(0,), ()]
    assert fake.streams[1].kinds == ["job"]


def test_large_inputs_come_in_chunks(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A tensor of 2.5 MiB takes three messages and arrives whole."""
    text = np.random.default_rng(0).standard_normal((1, 10 * 1024, 64)).astype(np.float32)
    call("sample", **{**job, "positive": Conditioning(text)})
    assert fake.streams[0].kinds == ["job", "chunk", "chunk", "chunk"]
    np.testing.assert_array_equal(next(iter(fake.jobs.values())).tensors[0].numpy(), text)


def test_refused_inputs(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A server that ends an upload says why, though messages to it fail; five attempts."""

    def before_chunk(offset: int) -> None:
        if offset:
            raise InvalidTensor("its second piece is wrong", field="job.tensors[0]")

    fake.before_chunk = before_chunk
    inputs = {**job, "positive": Conditioning(np.zeros((1, 6144, 1024), np.float32))}
    for _ in range(5):
        with pytest.raises(InvalidTensor, match="its second piece is wrong"):
            call("sample", **inputs)


def test_nonsense_from_the_server(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """Messages that the contract forbids are a defect and say so."""

    def replies(response: pb.SampleResponse) -> Iterator[pb.SampleResponse]:
        if response.WhichOneof("message") != "result":
            yield response

    fake.replies = replies
    with pytest.raises(InternalError, match="before any result"):
        call("sample", **job)


def test_trace_and_token_go_along(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """One trace for a job, known to its handle; the token is sent as HTTP would."""
    with Client(address, token="secret") as client, client.start(**job) as handle:
        handle.result()
    metadata = fake.streams[0].metadata
    assert len(handle.trace_id) == 32
    assert str(metadata["traceparent"]).split("-")[1] == handle.trace_id
    assert metadata["authorization"] == "Bearer secret"
