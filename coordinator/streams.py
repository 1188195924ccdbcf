"""Reading from a client that may be slow, silent or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from ditmesh.errors import DeadlineExceeded

T = TypeVar("T")


async def read(requests: AsyncIterator[T], timeout_s: float) -> T | None:
    """The next message, or None at the end of the stream.

    Raises DeadlineExceeded when the client stays silent for `timeout_s`.
    """
    try:
        return await asyncio.wait_for(anext(requests), timeout_s)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise DeadlineExceeded(
            f"nothing came for {timeout_s:g} s although tensors were still owed"
        ) from None
