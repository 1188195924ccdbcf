"""The client for asyncio programs; its surface is that of `ditmesh.client.blocking`."""

from ditmesh.client.aio.client import AsyncClient
from ditmesh.client.aio.handle import AsyncJobHandle
from ditmesh.client.aio.predict import AsyncPredictStream

__all__ = ["AsyncClient", "AsyncJobHandle", "AsyncPredictStream"]
