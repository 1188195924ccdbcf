"""What a job must be before anything is allocated for it.

`admit` reads the header alone; `check_values` looks at the tensors once they are here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from coordinator.config import Limits
from coordinator.jobs import checks
from coordinator.jobs.noise_levels import NoiseLevels, shift_of
from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.exchange import read_specs
from ditmesh.jobs import PREVIEW_BYTES, Job
from ditmesh.sampling import SAMPLERS
from ditmesh.tensors import DataType, TensorSpec, WireTensor
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import job_pb2 as pb

# The most noise that a sampler draws in one step.
_MOST_DRAWS = 2
_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Admitted:
    """A job whose header is sound. `spec` has explicit sigmas; `latent_shape` is [B, C, H, W]."""

    spec: pb.JobSpec
    specs: tuple[TensorSpec, ...]
    steps: int
    first_step: int
    latent_shape: tuple[int, int, int, int]

    @property
    def cells(self) -> int:
        """Latent cells of the whole batch: what the time of a step grows with."""
        batch, _, height, width = self.latent_shape
        return batch * height * width

    @property
    def latent_bytes(self) -> int:
        """Of the result's latent, and of each state's."""
        return math.prod(self.latent_shape) * DataType.F32.itemsize

    @property
    def nbytes(self) -> int:
        """The most bytes that are held for the job at once: its declared tensors, its two newest
        states and the one that is coming, the result, and a preview.
        """
        latent = self.latent_bytes
        state = latent * (1 + len(SAMPLERS[self.spec.sampler].history))
        result = latent + (state if self.spec.return_state else 0)
        preview = min(3 * self.cells, PREVIEW_BYTES) if self.spec.HasField("preview") else 0
        return sum(spec.nbytes for spec in self.specs) + 3 * state + result + preview


def admit(
    spec: pb.JobSpec, model: cluster_pb2.Model, limits: Limits, levels: NoiseLevels
) -> Admitted:
    """Check a job's header against its model. Raises InvalidRequest and its kin."""
    if not _JOB_ID.fullmatch(spec.job_id):
        raise InvalidRequest(
            "job_id must be 1 to 128 characters of A-Z a-z 0-9 . _ -", field="job.job_id"
        )
    specs = read_specs(spec.tensors, field="job.tensors", max_bytes=limits.request_bytes)
    table = checks.Table(specs, "job.tensors")
    if spec.sampler not in SAMPLERS:
        raise InvalidRequest(
            f"unknown sampler {spec.sampler!r}; use one of {', '.join(SAMPLERS)}",
            field="job.sampler",
        )
    checks.check_policy(spec.fallback, "job.fallback")
    shape = checks.latent_shape(spec, table, model, limits)
    checks.check_guidance(spec)
    checks.check_branch(spec.positive, "job.positive", table, model, shape[0], limits)
    if spec.HasField("negative"):
        checks.check_branch(spec.negative, "job.negative", table, model, shape[0], limits)
    checks.check_noise(spec, table, shape)
    if spec.HasField("noise_mask"):
        checks.check_mask(table.get(spec.noise_mask, "job.noise_mask"), shape)
    if spec.HasField("preview") and spec.preview.every_steps < 1:
        raise InvalidRequest(
            "preview.every_steps is 0; use at least 1, or leave preview out",
            field="job.preview.every_steps",
        )
    checks.check_patches(spec.weight_patches, "job.weight_patches", table)
    resolved = pb.JobSpec()
    resolved.CopyFrom(spec)
    shift = shift_of(spec, model)
    if shift is not None:
        resolved.shift = shift
    sigmas = levels.of(spec, model)
    resolved.DiscardUnknownFields()  # type: ignore[attr-defined] # its stubs lack it
    resolved.schedule.CopyFrom(pb.Schedule(explicit=pb.ExplicitSigmas(sigmas=sigmas)))
    steps = max(len(sigmas) - 1, 0)
    first = _check_state(spec, table, shape, steps)
    if spec.HasField("stop_after_step"):
        if not first <= spec.stop_after_step <= steps:
            raise InvalidRequest(
                f"stop_after_step is {spec.stop_after_step}; use {first} to {steps}",
                field="job.stop_after_step",
            )
        steps = spec.stop_after_step
    return Admitted(resolved, specs, steps, first, shape)


def knows_values(admitted: Admitted, tensors: tuple[WireTensor, ...]) -> bool:
    """Whether `check_values` takes no time, because it has seen these tensors before."""
    given = admitted.spec.WhichOneof("latent") == "latent_tensor"
    if given or admitted.spec.HasField("noise_mask"):
        return False
    return all(tensor.finite_is_known for tensor in tensors)


def check_values(admitted: Admitted, tensors: tuple[WireTensor, ...]) -> Job:
    """Check what only the bytes tell. Raises InvalidTensor for values that are not finite.

    An all-zero latent of another channel count becomes the empty latent that it stands for.
    """
    for i, tensor in enumerate(tensors):
        if not tensor.all_finite():
            raise InvalidTensor(
                f"job.tensors[{i}] has values that are NaN or infinite", field=f"job.tensors[{i}]"
            )
    spec = admitted.spec
    if spec.WhichOneof("latent") == "latent_tensor":
        given = tensors[spec.latent_tensor]
        batch, channels, height, width = admitted.latent_shape
        if given.spec.shape[1] != channels:
            if np.any(given.numpy()):
                raise InvalidTensor(
                    f"the latent has {given.spec.shape[1]} channels, the model {channels}; only an "
                    "all-zero latent is widened",
                    field="job.latent_tensor",
                )
            spec.empty_latent.CopyFrom(pb.EmptyLatent(batch=batch, height=height, width=width))
    if spec.HasField("noise_mask"):
        mask = tensors[spec.noise_mask].numpy()
        if mask.min() < 0 or mask.max() > 1:
            raise InvalidTensor("the noise mask has values outside 0 to 1", field="job.noise_mask")
    return Job(spec, tensors, admitted.latent_bytes)


def _check_state(spec: pb.JobSpec, table: checks.Table, shape: tuple[int, ...], steps: int) -> int:
    """The step that the job begins at."""
    if not spec.HasField("state"):
        return 0
    state = spec.state
    if state.step > steps:
        raise InvalidRequest(
            f"the state is after step {state.step}, the job has {steps}", field="job.state.step"
        )
    parts = {"latent": state.latent, **{f"history.{k}": v for k, v in state.history.items()}}
    for name, index in parts.items():
        field = f"job.state.{name}"
        given = table.get(index, field)
        if given.data_type is not DataType.F32 or given.shape != shape:
            raise InvalidTensor(f"{field} is {given}; f32{list(shape)} is needed", field=field)
    sampler = SAMPLERS[spec.sampler]
    if state.sampler_revision != sampler.revision:
        # Written by another revision of the sampler: it cannot be continued exactly.
        return 0
    expected = {name for name, since in sampler.history.items() if since <= state.step < steps}
    if state.history.keys() != expected:
        raise InvalidRequest(
            f"after step {state.step} of {spec.sampler} the history is {sorted(expected)}, "
            f"not {sorted(state.history)}",
            field="job.state.history",
        )
    if state.noise_draws > _MOST_DRAWS * state.step:
        # Draws are repeated one by one to find the place in the sequence.
        raise InvalidRequest(
            f"{state.noise_draws} noise draws in {state.step} steps are impossible",
            field="job.state.noise_draws",
        )
    return state.step
