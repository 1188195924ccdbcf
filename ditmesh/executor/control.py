"""Whether a job goes on: asked once before every step."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

import torch

from ditmesh.errors import BadResult
from ditmesh.sampling import State
from ditmesh.v1 import node_pb2 as pb

StopReason = pb.StopReason
GO_ON = pb.STOP_REASON_UNSPECIFIED


class StopFlag:
    """Set by whoever wants a job to end; read by the thread that runs it."""

    def __init__(self, deadline_s: float | None = None) -> None:
        """`deadline_s`: seconds from now after which the job stops by itself."""
        self._reason: StopReason = GO_ON
        self._lock = threading.Lock()
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s

    def set(self, reason: StopReason) -> None:
        """Ask for the end; the first reason counts."""
        with self._lock:
            if self._reason == GO_ON:
                self._reason = reason

    def reason(self) -> StopReason:
        """Why to stop, or GO_ON."""
        with self._lock:
            if (
                self._reason == GO_ON
                and self._deadline is not None
                and time.monotonic() >= self._deadline
            ):
                self._reason = pb.STOP_REASON_DEADLINE
            return self._reason


class Control(Protocol):
    """Decides before each step; on a mesh every rank gets the same answer."""

    def agree(self, state: State) -> StopReason:
        """GO_ON, or why all executors of the job stop now.

        Raises BadResult when the latent is not finite and RanksDiffer when the ranks'
        states differ.
        """
        ...


class LocalControl:
    """Control of a single process."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag

    def agree(self, state: State) -> StopReason:
        """As `Control.agree`; there is nobody to differ from."""
        require_finite(state)
        return self._flag.reason()


def all_finite(latent: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; a latent without values has none that is."""
    # A sum is not finite where a value is not, or where it overflows; one look at the device.
    return math.isfinite(latent.sum().item()) or bool(torch.isfinite(latent).all())


def require_finite(state: State) -> None:
    """Raises BadResult when a value of the latent is NaN or infinite."""
    if not all_finite(state.latent):
        raise not_finite(state)


def not_finite(state: State) -> BadResult:
    """What to say of a state with a value that is NaN or infinite."""
    return BadResult(
        f"the latent is not finite after step {state.step}: the model's output overflowed"
    )
