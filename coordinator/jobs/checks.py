"""The single fields of a job's header, each checked against the model and the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coordinator.config import Limits
from coordinator.lifecycle.ladder import Policy
from ditmesh.errors import InvalidRequest, InvalidTensor, LimitExceeded
from ditmesh.sampling.noise import MAX_BATCH_INDEX
from ditmesh.tensors import DataType, TensorSpec
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import job_pb2 as pb

MAX_CFG = 1000.0

POLICIES = {
    pb.FALLBACK_POLICY_UNSPECIFIED: Policy.ALLOW,
    pb.FALLBACK_POLICY_ALLOW: Policy.ALLOW,
    pb.FALLBACK_POLICY_FORBID: Policy.FORBID,
    pb.FALLBACK_POLICY_LOCAL_ONLY: Policy.LOCAL_ONLY,
}
"""What each policy of the contract means."""


class Table:
    """The declared tensors, looked up by index."""

    def __init__(self, specs: tuple[TensorSpec, ...], name: str) -> None:
        self._specs = specs
        self._name = name

    def get(self, index: int, field: str) -> TensorSpec:
        """A floating-point tensor. Raises InvalidRequest or InvalidTensor."""
        if index >= len(self._specs):
            raise InvalidRequest(
                f"{field} is {index}, but {self._name} has {len(self._specs)} entries", field=field
            )
        spec = self._specs[index]
        if not spec.data_type.is_float:
            raise InvalidTensor(f"{field} is {spec}; floating point is needed", field=field)
        return spec


def latent_shape(
    spec: pb.JobSpec, table: Table, model: cluster_pb2.Model, limits: Limits
) -> tuple[int, int, int, int]:
    """[B, C, H, W] of the job's latent, with the model's channels."""
    kind = spec.WhichOneof("latent")
    if kind is None:
        raise InvalidRequest("give latent_tensor or empty_latent", field="job.latent")
    if kind == "latent_tensor":
        given = table.get(spec.latent_tensor, "job.latent_tensor")
        batch, _, height, width = latent_tensor(given, "job.latent_tensor", model, limits)
        return batch, model.latent_channels, height, width
    empty = spec.empty_latent
    shape = (empty.batch, model.latent_channels, empty.height, empty.width)
    _check_size(shape, "job.empty_latent", model, limits)
    return shape


def latent_tensor(
    given: TensorSpec, field: str, model: cluster_pb2.Model, limits: Limits
) -> tuple[int, int, int, int]:
    """[B, C, H, W] of a latent that was sent, with the channels that it has."""
    if len(given.shape) != 4:
        raise InvalidTensor(
            f"{field} is {given}; [B, {model.latent_channels}, H, W] is needed", field=field
        )
    batch, channels, height, width = given.shape
    _check_size((batch, model.latent_channels, height, width), field, model, limits)
    return batch, channels, height, width


def _check_size(
    shape: tuple[int, int, int, int], field: str, model: cluster_pb2.Model, limits: Limits
) -> None:
    batch, channels, height, width = shape
    if not (batch and height and width):
        raise InvalidRequest(
            f"{field} is {batch} x {height} x {width}; each must be at least 1", field=field
        )
    multiple = model.size_multiple
    if height % multiple or width % multiple:
        raise InvalidTensor(
            f"{field} is {height} x {width}; rows and columns must be multiples of {multiple}",
            field=field,
        )
    cells = batch * height * width
    if cells > limits.latent_cells:
        raise LimitExceeded(
            f"{field} has {cells} latent cells; this server takes at most {limits.latent_cells}",
            field=field,
        )
    nbytes = cells * channels * DataType.F32.itemsize
    if nbytes > limits.request_bytes:
        raise LimitExceeded(
            f"{field} needs {nbytes} bytes; this server takes at most {limits.request_bytes}",
            field=field,
        )


def check_policy(policy: int, field: str) -> None:
    """The fallback policy: enums on the wire hold any number."""
    if policy not in pb.FallbackPolicy.values():
        names = ", ".join(pb.FallbackPolicy.keys())
        raise InvalidRequest(f"{field} is {policy}; use one of {names}", field=field)


def check_timestep(timestep: Sequence[float], batch: int) -> None:
    """The timesteps of a single call."""
    if len(timestep) not in (1, batch):
        raise InvalidRequest(
            f"timestep has {len(timestep)} values; give 1 or {batch}", field="call.timestep"
        )
    if not all(math.isfinite(t) for t in timestep):
        raise InvalidRequest("a timestep is NaN or infinite", field="call.timestep")


def check_guidance(spec: pb.JobSpec) -> None:
    """The guidance scale, and the negative conditioning that it may need."""
    if not spec.HasField("cfg"):
        return
    if not 0.0 <= spec.cfg <= MAX_CFG:
        raise InvalidRequest(f"cfg is {spec.cfg}; use 0 to {MAX_CFG:g}", field="job.cfg")
    if not math.isclose(spec.cfg, 1.0) and not spec.negative.HasField("text"):
        raise InvalidRequest(
            f"cfg is {spec.cfg:g}, which needs a negative conditioning; send one, or use cfg 1",
            field="job.negative",
        )


def check_branch(
    branch: pb.Conditioning,
    field: str,
    table: Table,
    model: cluster_pb2.Model,
    batch: int,
    limits: Limits,
) -> None:
    """One conditioning: `field` is its path in the request."""
    if not branch.HasField("text"):
        raise InvalidRequest(f"{field}.text is missing", field=f"{field}.text")
    text = table.get(branch.text, f"{field}.text")
    if len(text.shape) != 3 or text.shape[2] != model.text_dim or text.shape[0] not in (1, batch):
        raise InvalidTensor(
            f"{field}.text is {text}; [1 or {batch}, T, {model.text_dim}] is needed",
            field=f"{field}.text",
        )
    if text.shape[1] > limits.text_tokens:
        raise LimitExceeded(
            f"{field}.text has {text.shape[1]} tokens; this server takes at most "
            f"{limits.text_tokens}",
            field=f"{field}.text",
        )
    if branch.HasField("pooled"):
        pooled = table.get(branch.pooled, f"{field}.pooled")
        if pooled.shape not in ((1, model.pooled_dim), (batch, model.pooled_dim)):
            raise InvalidTensor(
                f"{field}.pooled is {pooled}; [1 or {batch}, {model.pooled_dim}] is needed",
                field=f"{field}.pooled",
            )
    if len(branch.guidance) not in (0, 1, batch):
        raise InvalidRequest(
            f"{field}.guidance has {len(branch.guidance)} values; give none, 1 or {batch}",
            field=f"{field}.guidance",
        )
    if not all(math.isfinite(g) and 0.0 <= g <= MAX_CFG for g in branch.guidance):
        raise InvalidRequest(
            f"{field}.guidance must be 0 to {MAX_CFG:g}", field=f"{field}.guidance"
        )
    if branch.extra:
        raise InvalidRequest(
            f"{field}.extra names {', '.join(sorted(branch.extra))}; family {model.family} "
            "takes no extra tensors",
            field=f"{field}.extra",
        )


def check_noise(spec: pb.JobSpec, table: Table, shape: tuple[int, ...]) -> None:
    """Noise given as a tensor, and batch positions of seeded noise."""
    kind = spec.noise.WhichOneof("kind")
    if kind == "tensor":
        given = table.get(spec.noise.tensor, "job.noise.tensor")
        if given.shape != shape:
            raise InvalidTensor(
                f"the noise is {given}; the latent's shape {list(shape)} is needed",
                field="job.noise.tensor",
            )
    index = spec.noise.seeded.batch_index if kind == "seeded" else ()
    if any(position > MAX_BATCH_INDEX for position in index):
        raise InvalidRequest(
            f"batch_index is {max(index)}; use 0 to {MAX_BATCH_INDEX}",
            field="job.noise.seeded.batch_index",
        )
    if len(index) not in (0, shape[0]):
        raise InvalidRequest(
            f"batch_index has {len(index)} entries for a batch of {shape[0]}",
            field="job.noise.seeded.batch_index",
        )


def check_mask(mask: TensorSpec, shape: tuple[int, int, int, int]) -> None:
    """The declared shape of a noise mask."""
    dims = mask.shape
    fits = (len(dims) == 4 and dims[1] == 1) or len(dims) == 3
    if not fits or dims[0] not in (1, shape[0]):
        raise InvalidTensor(
            f"the noise mask is {mask}; [1 or {shape[0]}, 1, h, w] or [1 or {shape[0]}, h, w] "
            "is needed",
            field="job.noise_mask",
        )


def check_patches(patches: Sequence[pb.WeightPatch], field: str, table: Table) -> None:
    """Weight patches as far as they can be judged without the model's weights."""
    for i, patch in enumerate(patches):
        at = f"{field}[{i}]"
        scales = (patch.strength, patch.weight_scale, patch.low_rank.alpha)
        if not all(math.isfinite(scale) for scale in scales):
            raise InvalidRequest(f"{at} has a factor that is NaN or infinite", field=at)
        if patch.HasField("slice") and (patch.slice.dimension > 1 or not patch.slice.length):
            raise InvalidRequest(
                f"{at}.slice needs dimension 0 or 1 and a length of at least 1",
                field=f"{at}.slice",
            )
        kind = patch.WhichOneof("change")
        if kind is None:
            raise InvalidRequest(f"{at} has neither low_rank nor diff", field=at)
        if kind == "diff":
            table.get(patch.diff, f"{at}.diff")
            continue
        up = table.get(patch.low_rank.up, f"{at}.low_rank.up").shape
        down = table.get(patch.low_rank.down, f"{at}.low_rank.down").shape
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise InvalidTensor(
                f"{at}: up is {list(up)} and down {list(down)}; [rows, rank] and [rank, columns] "
                "are needed",
                field=f"{at}.low_rank",
            )
