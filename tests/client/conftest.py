"""The fake coordinator, and both clients behind one face."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ditmesh.client import AsyncClient, Client, Conditioning
from tests.client.fake import Fake, serve


@pytest.fixture
def fake() -> Fake:
    """The fake's state and hooks."""
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    """Where the fake listens."""
    server, where = serve(fake)
    yield where
    server.stop(None).wait()


Call = Callable[..., Any]
"""Calls a method of a new client: `call("sample", model=...)`."""


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, address: str) -> Call:
    """A method of either client, as one call, on a client that is closed afterwards."""

    def blocking(
        method: str, /, *args: Any, client: dict[str, Any] | None = None, **kw: Any
    ) -> Any:
        with Client(address, **(client or {})) as made:
            return getattr(made, method)(*args, **kw)

    def asynchronous(
        method: str, /, *args: Any, client: dict[str, Any] | None = None, **kw: Any
    ) -> Any:
        async def run() -> Any:
            async with AsyncClient(address, **(client or {})) as made:
                found = getattr(made, method)(*args, **kw)
                return await found if inspect.isawaitable(found) else found

        return asyncio.run(run())

    return blocking if request.param == "blocking" else asynchronous


@pytest.fixture
def job() -> dict[str, Any]:
    """The least that a job needs."""
    text = np.linspace(0, 1, 2 * 3, dtype=np.float32).reshape(1, 2, 3)
    return {"model": "flux", "positive": Conditioning(text), "size": (1, 4, 6)}
