"""From the options of `Client.sample` to a job: a spec and its tensors."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

import numpy as np

from ditmesh.client.conditioning import Conditioning, TensorLike, TensorTable, to_wire
from ditmesh.client.weights import WeightPatch, patch_messages
from ditmesh.errors import InvalidRequest
from ditmesh.jobs import Job, Snapshot
from ditmesh.models.latents import LatentFormat
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as pb

Fallback = Literal["allow", "forbid", "local_only"]


class _Required(TypedDict):
    model: str
    """Name of a model that the cluster serves."""
    positive: Conditioning
    """What the picture should show."""


class JobOptions(_Required, total=False):
    """What to sample. `model`, `positive` and one of `latent` and `size` are needed."""

    negative: Conditioning | None
    """What it should not show; needed unless `cfg` is 1."""
    latent: TensorLike
    """A latent [B, C, H, W] to start from, in the space that `latent_format` says."""
    size: tuple[int, int, int]
    """Batch, rows and columns of an empty latent. Rows: for Flux, pixels divided by 8."""
    latent_format: LatentFormat | None
    """The autoencoder in whose space `latent` and the result are; None: in model space."""
    steps: int
    """Number of steps, 20."""
    sampler: str
    """By ComfyUI's name, "euler"."""
    scheduler: str
    """By ComfyUI's name, "simple"."""
    denoise: float
    """Share of the noise range that is sampled, above 0 to 1; 1."""
    start_step: int | None
    """First step, as in KSampler Advanced: a slice of the schedule, not a resumption."""
    end_step: int | None
    """Step to stop before, as in KSampler Advanced."""
    keep_leftover_noise: bool
    """Keep the noise that is left at `end_step`; False."""
    sigmas: TensorLike | None
    """Explicit noise levels, instead of `steps`, `scheduler` and the other schedule options."""
    seed: int
    """Of the initial noise and of the noise that a sampler adds; 0."""
    cfg: float
    """Classifier-free guidance scale; 1."""
    noise: TensorLike | Literal[False] | None
    """None: from the seed. A tensor of the latent's shape. False: none is added."""
    batch_index: Sequence[int]
    """Which draw of the seeded noise each batch item takes, as in ComfyUI."""
    noise_mask: TensorLike | None
    """[B or 1, 1, h, w] or [B or 1, h, w] from 0 to 1: 1 is sampled, 0 keeps `latent`."""
    shift: float | None
    """Shift of the noise schedule; None: the family's own."""
    fallback: Fallback
    """What may run the job when the group cannot: "allow"."""
    preview_every: int
    """A preview after every so many steps; 0: none."""
    state: Snapshot | None
    """Continue exactly from here, the `state` of an earlier result."""
    stop_after_step: int | None
    """Stop after so many steps of the whole job; the result is the latent as it stands."""
    return_state: bool
    """Also return the final state; False."""
    weight_patches: Sequence[WeightPatch]
    """Changes of the model's weights for this job, such as a LoRA, in their order."""
    job_id: str | None
    """1 to 128 of A-Z a-z 0-9 . _ - ; None: a new one."""


_DEFAULTS: dict[str, Any] = {
    "negative": None,
    "latent": None,
    "size": None,
    "latent_format": None,
    "steps": 20,
    "sampler": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "start_step": None,
    "end_step": None,
    "keep_leftover_noise": False,
    "sigmas": None,
    "seed": 0,
    "cfg": 1.0,
    "noise": None,
    "batch_index": (),
    "noise_mask": None,
    "shift": None,
    "fallback": "allow",
    "preview_every": 0,
    "state": None,
    "stop_after_step": None,
    "return_state": False,
    "weight_patches": (),
    "job_id": None,
}
_SCHEDULE = ("steps", "scheduler", "denoise", "start_step", "end_step", "keep_leftover_noise")
_POLICIES = {
    "allow": pb.FALLBACK_POLICY_ALLOW,
    "forbid": pb.FALLBACK_POLICY_FORBID,
    "local_only": pb.FALLBACK_POLICY_LOCAL_ONLY,
}


def build_job(given: JobOptions) -> Job:
    """The job that the options describe.

    Raises TypeError for an option that there is not, InvalidRequest or InvalidTensor for options
    that contradict one another or cannot be sent. The server checks all the rest.
    """
    _check_names(given)
    options = cast(JobOptions, {**_DEFAULTS, **given})
    table = TensorTable()
    try:
        spec = _spec(options, table)
        _set_schedule(spec, options, given)
        _set_latent(spec, options, table)
        _set_noise(spec, options, table)
    except (ValueError, TypeError) as error:
        # A value that its field cannot hold, such as a negative seed.
        raise InvalidRequest(f"an option of the job does not fit its field: {error}") from error
    if options["noise_mask"] is not None:
        spec.noise_mask = table.add(to_wire(options["noise_mask"], "noise_mask").hashed())
    spec.tensors.extend(tensor.spec.to_proto() for tensor in table.tensors)
    return Job(spec, tuple(table.tensors)).continued_from(options["state"])


def fallback_policy(fallback: Fallback, field: str) -> pb.FallbackPolicy:
    """The policy on the wire. Raises InvalidRequest, which names `field`."""
    if fallback not in _POLICIES:
        raise InvalidRequest(
            f"{field} is {fallback!r}; use one of {', '.join(_POLICIES)}", field=field
        )
    return _POLICIES[fallback]


def _check_names(given: JobOptions) -> None:
    known = JobOptions.__annotations__.keys() | _Required.__annotations__.keys()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"there is no option {name!r}{hint}")
    for name in _Required.__annotations__:
        if name not in given:
            raise TypeError(f"the option {name!r} is missing")


def _spec(options: JobOptions, table: TensorTable) -> pb.JobSpec:
    """The fields that stand for themselves."""
    negative = options["negative"]
    every = options["preview_every"]
    return pb.JobSpec(
        job_id=options["job_id"] or uuid.uuid4().hex,
        model=options["model"],
        sampler=options["sampler"],
        seed=options["seed"],
        cfg=options["cfg"],
        positive=options["positive"].to_proto(table),
        negative=None if negative is None else negative.to_proto(table),
        shift=options["shift"],
        fallback=fallback_policy(options["fallback"], "job.fallback"),
        preview=pb.Preview(every_steps=every) if every else None,
        stop_after_step=options["stop_after_step"],
        return_state=options["return_state"],
        weight_patches=patch_messages(options["weight_patches"], table),
    )


def _set_schedule(spec: pb.JobSpec, options: JobOptions, given: JobOptions) -> None:
    if options["sigmas"] is not None:
        both = [name for name in _SCHEDULE if name in given]
        if both:
            raise InvalidRequest(
                f"sigmas and {', '.join(both)} were given; sigmas are the whole schedule",
                field="job.schedule",
            )
        levels = to_wire(options["sigmas"], "sigmas").numpy().ravel().tolist()
        spec.schedule.explicit.sigmas.extend(levels)
        return
    spec.schedule.named.CopyFrom(
        pb.NamedSchedule(
            scheduler=options["scheduler"],
            steps=options["steps"],
            denoise=options["denoise"],
            start_step=options["start_step"],
            end_step=options["end_step"],
            keep_leftover_noise=options["keep_leftover_noise"],
        )
    )


def _set_latent(spec: pb.JobSpec, options: JobOptions, table: TensorTable) -> None:
    latent, size = options["latent"], options["size"]
    if (latent is None) == (size is None):
        raise InvalidRequest("give either latent or size", field="job.latent")
    if latent is None:
        batch, rows, columns = size
        spec.empty_latent.CopyFrom(pb.EmptyLatent(batch=batch, height=rows, width=columns))
        return
    tensor = to_wire(latent, "latent")
    if options["latent_format"] is not None:
        values = tensor.numpy().astype(np.float32)
        tensor = WireTensor.from_numpy(options["latent_format"].to_model_space(values))
    spec.latent_tensor = table.add(tensor.hashed())


def _set_noise(spec: pb.JobSpec, options: JobOptions, table: TensorTable) -> None:
    """Noise and state are sent without a hash: they hardly ever come twice."""
    noise, index = options["noise"], options["batch_index"]
    if noise is None:
        spec.noise.seeded.batch_index.extend(index)
        spec.noise.seeded.SetInParent()
    elif len(index):
        raise InvalidRequest(
            "batch_index is for seeded noise; leave it out when noise is given",
            field="job.noise.seeded.batch_index",
        )
    elif noise is False:
        spec.noise.none.SetInParent()
    else:
        spec.noise.tensor = table.add(to_wire(noise, "noise"))
