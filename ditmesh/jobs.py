"""Jobs as values: a spec with its tensors, and a snapshot of how far it got."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as pb

PREVIEW_BYTES = 1 << 20
"""The most that a preview has: a larger picture is thinned out."""


@dataclass(frozen=True)
class Snapshot:
    """A job's state with its tensors; the state's indices count in `tensors`."""

    state: pb.JobState
    tensors: tuple[WireTensor, ...] = field(repr=False)

    @property
    def step(self) -> int:
        """Steps finished."""
        return self.state.step


@dataclass(frozen=True)
class Job:
    """What to sample, with every tensor that the spec names, and where to begin."""

    spec: pb.JobSpec
    tensors: tuple[WireTensor, ...] = field(repr=False)
    latent_bytes: int = 0
    """Of the result's latent; 0 where that is not known."""

    @property
    def snapshot(self) -> Snapshot | None:
        """The state that the spec continues from, if it has one."""
        if not self.spec.HasField("state"):
            return None
        return extract_state(self.spec.state, self.tensors)

    def continued_from(self, snapshot: Snapshot | None) -> Job:
        """The same job, to be continued from `snapshot` (None: from its beginning)."""
        spec = pb.JobSpec()
        spec.CopyFrom(self.spec)
        spec.ClearField("state")
        if snapshot is None:
            return replace(self, spec=spec)
        base = len(self.tensors)
        spec.state.CopyFrom(snapshot.state)
        spec.state.latent += base
        # A copy: a protobuf map must not be written to while it is walked.
        for name in list(spec.state.history):
            spec.state.history[name] += base
        spec.tensors.extend(t.spec.to_proto() for t in snapshot.tensors)
        return replace(self, spec=spec, tensors=self.tensors + snapshot.tensors)


def extract_state(state: pb.JobState, tensors: Sequence[WireTensor]) -> Snapshot:
    """The snapshot behind a state message whose indices count in `tensors`."""
    names = sorted(state.history)
    own = pb.JobState()
    own.CopyFrom(state)
    own.latent = 0
    for i, name in enumerate(names):
        own.history[name] = i + 1
    picked = [tensors[state.latent], *(tensors[state.history[name]] for name in names)]
    return Snapshot(own, tuple(picked))


def spec_digest(spec: pb.JobSpec) -> bytes:
    """Equal for equal specs: tells a client that comes back from one that took its id."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()
