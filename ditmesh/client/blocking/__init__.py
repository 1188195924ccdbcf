"""The client for ordinary, threaded programs."""

from ditmesh.client.blocking.client import Client
from ditmesh.client.blocking.handle import JobHandle
from ditmesh.client.blocking.predict import PredictStream

__all__ = ["Client", "JobHandle", "PredictStream"]
