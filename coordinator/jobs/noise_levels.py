"""A job's noise levels, worked out once for a schedule: pictures are made by the dozen."""

from __future__ import annotations

from collections import OrderedDict

import torch

from ditmesh.errors import DitmeshError, InvalidRequest
from ditmesh.models.registry import family
from ditmesh.sampling import NoiseProcess, check_plan, job_sigmas
from ditmesh.sampling.schedules import MAX_STEPS
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import job_pb2 as pb

_KEPT = 256
# What a client makes up must not fill the memory.
_LONGEST_KEPT = 256
_MOST_BYTES_KEPT = 2048

_Key = tuple[str, str, float | None, bytes]


class NoiseLevels:
    """Schedules, the newest of them remembered. Any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, tuple[float, ...]] = OrderedDict()

    def knows(self, spec: pb.JobSpec, model: cluster_pb2.Model) -> bool:
        """Whether `of` takes no time."""
        return _key(spec, model) in self._known

    def of(self, spec: pb.JobSpec, model: cluster_pb2.Model) -> tuple[float, ...]:
        """The sigmas of a job whose sampler is known; empty when there is nothing to sample.

        Raises InvalidRequest for what no sampler could follow.
        """
        key = _key(spec, model)
        sigmas = self._known.get(key)
        if sigmas is None:
            sigmas = _compute(spec, model)
            if len(sigmas) <= _LONGEST_KEPT and len(key[-1]) <= _MOST_BYTES_KEPT:
                self._known[key] = sigmas
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return sigmas


def shift_of(spec: pb.JobSpec, model: cluster_pb2.Model) -> float | None:
    """The job's shift of the schedule, or else its model's; None: the family's own."""
    if spec.HasField("shift"):
        return spec.shift
    return model.default_shift if model.HasField("default_shift") else None


def _key(spec: pb.JobSpec, model: cluster_pb2.Model) -> _Key:
    schedule = spec.schedule.SerializeToString(deterministic=True)
    return model.family, spec.sampler, shift_of(spec, model), schedule


def _compute(spec: pb.JobSpec, model: cluster_pb2.Model) -> tuple[float, ...]:
    kind = spec.schedule.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("give schedule.named or schedule.explicit", field="job.schedule")
    try:
        process = family(model.family).process(shift_of(spec, model))
    except DitmeshError as error:
        raise InvalidRequest(error.message, field="job.shift") from error
    if kind == "explicit":
        count = len(spec.schedule.explicit.sigmas)
        if not 2 <= count <= MAX_STEPS + 1:
            raise InvalidRequest(
                f"schedule.explicit has {count} sigmas; use 2 to {MAX_STEPS + 1}",
                field="job.schedule.explicit.sigmas",
            )
        values = torch.tensor(list(spec.schedule.explicit.sigmas), dtype=torch.float32)
        field = "job.schedule.explicit"
    else:
        field = "job.schedule.named"
        values = _named_sigmas(spec, process)
        if bool((values[1:] >= values[:-1]).any()):
            named = spec.schedule.named
            raise InvalidRequest(
                f"{named.scheduler} has no {named.steps} different noise levels for this model; "
                "use fewer steps",
                field="job.schedule.named.steps",
            )
    try:
        check_plan(spec.sampler, values, process, seed=0)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=f"{field}.{error.field}") from error
    return tuple(float(sigma) for sigma in values)


def _named_sigmas(spec: pb.JobSpec, process: NoiseProcess) -> torch.Tensor:
    named = spec.schedule.named
    try:
        return job_sigmas(
            process,
            sampler=spec.sampler,
            scheduler=named.scheduler,
            steps=named.steps,
            denoise=named.denoise if named.HasField("denoise") else 1.0,
            start_step=named.start_step if named.HasField("start_step") else None,
            end_step=named.end_step if named.HasField("end_step") else None,
            force_full_denoise=not named.keep_leftover_noise,
        )
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=f"job.schedule.named.{error.field}") from error
