"""Single transformer calls over one stream."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditmesh.client import AsyncClient, Client, Conditioning, WeightPatch
from ditmesh.errors import DeadlineExceeded, InvalidTensor, Unavailable
from tests.client.fake import Broken, Fake

X = np.arange(2 * 16 * 2 * 2, dtype=np.float32).reshape(2, 16, 2, 2)


@pytest.fixture
def conditioning() -> Conditioning:
    """Text that is worth sending once only."""
    return Conditioning(np.ones((1, 4, 8), np.float32), guidance=3.5)


@pytest.mark.parametrize("old", [False, True])
def test_calls(address: str, fake: Fake, conditioning: Conditioning, old: bool) -> None:
    """Calls share a stream; the conditioning is sent with the first, x with each. A server that
    asks for what is on its way gets it once.
    """
    fake.asks_for_all = old
    with Client(address) as client, client.predict_stream("flux", fallback="forbid") as stream:
        for sigma in (1.0, 0.5, 0.25):
            output = stream.predict(X, sigma, conditioning)
            np.testing.assert_array_equal(output, X * sigma)
        assert (stream.executor, stream.fallback_reason) == ("local", "NO_GROUP")
    assert fake.needed == [(0, 1), (0,), (0,)]
    assert [opened.model for opened in fake.predict_opens] == ["flux"]


def test_asynchronous_calls(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """The asyncio stream does the same; calls made at once are answered one after another."""

    async def run() -> list[Any]:
        async with AsyncClient(address) as client, client.predict_stream("flux") as stream:
            return await asyncio.gather(
                *(stream.predict(X, [s, s], conditioning) for s in (1.0, 2.0, 3.0))
            )

    outputs = asyncio.run(run())
    for factor, output in zip((1.0, 2.0, 3.0), outputs, strict=True):
        np.testing.assert_array_equal(output, X * factor)
    assert len(fake.predict_opens) == 1


def test_failed_call(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """A call that fails raises what the server said; the stream goes on."""

    def before_call(call: int) -> None:
        if call == 1:
            raise InvalidTensor("x has values that are NaN", field="call.tensors[0]")

    fake.before_call = before_call
    with Client(address) as client, client.predict_stream("flux") as stream:
        with pytest.raises(InvalidTensor, match="NaN") as caught:
            stream.predict(X, 1.0, conditioning)
        assert caught.value.field == "call.tensors[0]"
        np.testing.assert_array_equal(stream.predict(X, 1.0, conditioning), X)
    assert len(fake.predict_opens) == 1


def break_once(fake: Fake) -> None:
    """Breaks the stream of the second call, once."""
    broken: list[int] = []

    def before_call(call: int) -> None:
        if call == 2 and not broken:
            broken.append(call)
            raise Broken

    fake.before_call = before_call


def test_broken_stream(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """A call whose stream breaks is made again on a new one: it has no effect but its answer."""
    break_once(fake)
    with Client(address) as client, client.predict_stream("flux") as stream:
        for _ in range(3):
            np.testing.assert_array_equal(stream.predict(X, 1.0, conditioning), X)
    assert len(fake.predict_opens) == 2


def test_broken_asynchronous_stream(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """So it is with asyncio."""
    break_once(fake)

    async def run() -> None:
        async with AsyncClient(address) as client, client.predict_stream("flux") as stream:
            for _ in range(3):
                np.testing.assert_array_equal(await stream.predict(X, 1.0, conditioning), X)

    asyncio.run(run())
    assert len(fake.predict_opens) == 2


def lora() -> WeightPatch:
    """A low-rank change of one weight."""
    return WeightPatch("img_in.weight", up=np.ones((4, 2)), down=np.ones((2, 3)), alpha=1.0)


def test_weight_patches(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """Patches are sent when a stream opens, once as long as the server has them."""
    patch = lora()
    with Client(address) as client:
        for _ in range(2):
            with client.predict_stream("flux", weight_patches=[patch]) as stream:
                for _ in range(2):
                    np.testing.assert_array_equal(stream.predict(X, 1.0, conditioning), X)
    assert fake.needed == [(0, 1), (0, 1), (0,), (), (0,), (0,)]
    sent = fake.predict_opens[0].weight_patches[0]
    assert (sent.weight, sent.low_rank.alpha) == ("img_in.weight", 1.0)


def test_asynchronous_weight_patches(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """So it is with asyncio, on the new stream after a break too."""
    break_once(fake)

    async def run() -> None:
        async with (
            AsyncClient(address) as client,
            client.predict_stream("flux", weight_patches=[lora()]) as stream,
        ):
            for _ in range(3):
                np.testing.assert_array_equal(await stream.predict(X, 1.0, conditioning), X)

    asyncio.run(run())
    assert [len(opened.weight_patches) for opened in fake.predict_opens] == [1, 1]


def test_late_answer(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """An answer that takes too long is an error; the next call has a stream of its own."""

    def before_call(call: int) -> None:
        time.sleep(1.0 if call == 1 else 0.0)

    fake.before_call = before_call

    async def run() -> None:
        async with AsyncClient(address) as client, client.predict_stream("flux") as stream:
            with pytest.raises(DeadlineExceeded, match="within"):
                await stream.predict(X, 1.0, conditioning, timeout_s=0.2)

    with Client(address) as client, client.predict_stream("flux") as stream:
        with pytest.raises(DeadlineExceeded, match="within"):
            stream.predict(X, 1.0, conditioning, timeout_s=0.2)
        np.testing.assert_array_equal(stream.predict(X, 1.0, conditioning), X)
    asyncio.run(run())


def used_memory(fake: Fake) -> list[bool]:
    """Of each call, whether it came with memory."""
    return [views is not None for views in fake.calls]


def test_calls_of_one_machine_share_memory(
    address: str, fake: Fake, conditioning: Conditioning
) -> None:
    """From the second on: x is read there, the output written there. What a caller was given is
    its own, and stays as it was; the memory is used again, also after a new conditioning.
    """
    with Client(address) as client, client.predict_stream("flux") as stream:
        outputs = [stream.predict(s * X, s, conditioning) for s in (1.0, 2.0, 3.0)]
        other = Conditioning(np.zeros((1, 4, 8), np.float32))
        outputs.append(stream.predict(4 * X, 4.0, other))
        for scale, output in zip((1.0, 2.0, 3.0, 4.0), outputs, strict=True):
            np.testing.assert_array_equal(output, X * scale**2)
    assert used_memory(fake) == [False, True, True, True]
    assert len({id(views.output.obj) for views in fake.calls if views is not None}) == 1


def test_asynchronous_calls_share_memory(
    address: str, fake: Fake, conditioning: Conditioning
) -> None:
    """So it is with asyncio, for calls of changing sizes too, some of several MiB."""

    async def run() -> None:
        async with AsyncClient(address) as client, client.predict_stream("flux") as stream:
            for rows in (2, 2, 160, 160, 2, 2):
                x = np.full((1, 16, rows, rows), rows, np.float32)
                np.testing.assert_array_equal(await stream.predict(x, 2.0, conditioning), 2 * x)

    asyncio.run(run())
    assert used_memory(fake) == [False, True, True, True, True, True]


@pytest.mark.parametrize("where", ["", "another machine"])
def test_a_client_elsewhere_sends_its_tensors(
    where: str,
    address: str,
    fake: Fake,
    conditioning: Conditioning,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is sent the output: nothing else is different."""
    monkeypatch.setattr("ditmesh.client.prediction.host_id", lambda: where)
    with Client(address) as client, client.predict_stream("flux") as stream:
        for sigma in (1.0, 0.5):
            np.testing.assert_array_equal(stream.predict(X, sigma, conditioning), X * sigma)
    assert [opened.host for opened in fake.predict_opens] == [where]
    assert used_memory(fake) == [False, False]
    assert fake.needed == [(0, 1), (0,)]


def test_memory_that_a_server_cannot_read(
    address: str, fake: Fake, conditioning: Conditioning
) -> None:
    """It asks for the tensors, which are sent; memory is not tried again on that stream, but on
    the next.
    """
    with Client(address) as client:
        for _ in range(2):
            with client.predict_stream("flux") as stream:
                fake.blind = True
                for _ in range(3):
                    np.testing.assert_array_equal(stream.predict(X, 2.0, conditioning), 2 * X)
                fake.blind = False
                np.testing.assert_array_equal(stream.predict(X, 2.0, conditioning), 2 * X)
        with client.predict_stream("flux") as stream:
            for _ in range(2):
                np.testing.assert_array_equal(stream.predict(X, 2.0, conditioning), 2 * X)
    assert used_memory(fake) == [False] * 4 + [False] * 4 + [False, True]


@pytest.mark.parametrize(
    ("end", "used"),
    [
        ("error", [False, True, True, True, True]),
        ("break", [False, True, True, False, True, True]),
        ("timeout", [False, True, True, False, True]),
    ],
)
def test_memory_of_a_call_that_did_not_end_well_is_not_used_again(
    end: str, used: list[bool], address: str, fake: Fake, conditioning: Conditioning
) -> None:
    """Its server may be writing to it still: what is written late reaches nobody. A stream that
    goes on has other memory at once, a new one begins without.
    """

    def before_call(call: int) -> None:
        if call != 3 or len(fake.calls) > 3:
            return
        if end == "error":
            raise InvalidTensor("no")
        if end == "break":
            raise Broken
        time.sleep(1.0)

    fake.before_call = before_call
    with Client(address) as client, client.predict_stream("flux") as stream:
        for _ in range(2):
            stream.predict(X, 1.0, conditioning)
        if end == "break":
            np.testing.assert_array_equal(stream.predict(X, 2.0, conditioning), 2 * X)
        else:
            with pytest.raises((InvalidTensor, DeadlineExceeded)):
                stream.predict(X, 2.0, conditioning, timeout_s=0.3)
        for _ in range(2):
            np.testing.assert_array_equal(stream.predict(X, 2.0, conditioning), 2 * X)
        late = fake.calls[2]
        assert late is not None
        assert fake.calls[-1] is not None
        late.output[:4] = b"late"
        assert bytes(fake.calls[-1].output[:4]) != b"late"
    assert used_memory(fake) == used


def test_memory_goes_with_its_stream(address: str, fake: Fake, conditioning: Conditioning) -> None:
    """Whatever was shared, no file of it stays open, on neither side."""
    shared: set[int] = set()
    with Client(address) as client:
        for _ in range(3):
            with client.predict_stream("flux") as stream:
                before = memory_files()
                for _ in range(2):
                    stream.predict(X, 1.0, conditioning)
                assert memory_files() - before
                shared |= memory_files() - before
    fake.calls.clear()
    end = time.monotonic() + 20.0
    while memory_files() & shared:
        assert time.monotonic() < end, "memory files are left over"
        gc.collect()  # the fake's frames are kept by the errors that ended its streams
        time.sleep(0.01)


def memory_files() -> set[int]:
    """Those that this process has open, or mapped, which takes a descriptor too."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "memfd:ditmesh" in os.readlink(entry):
                found.add(entry.stat().st_ino)
    return found


def test_unreachable(conditioning: Conditioning) -> None:
    """Without a server a call fails once `connect_s` is over."""
    with (
        Client("127.0.0.1:1", connect_s=0.2) as client,
        client.predict_stream("flux") as stream,
        pytest.raises(Unavailable, match="Cannot reach"),
    ):
        stream.predict(X, 1.0, conditioning)
