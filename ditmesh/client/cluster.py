"""A cluster at one moment, as `ClusterService` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ditmesh.errors import UnknownModel
from ditmesh.models.latents import LatentFormat
from ditmesh.v1 import cluster_pb2 as pb

_NODE_STATES = {
    pb.NODE_STATE_DOWN: "down",
    pb.NODE_STATE_IDLE: "idle",
    pb.NODE_STATE_JOINED: "joined",
    pb.NODE_STATE_DRAINING: "draining",
}
_GROUP_STATES = {
    pb.GROUP_STATE_NONE: "none",
    pb.GROUP_STATE_FORMING: "forming",
    pb.GROUP_STATE_READY: "ready",
}


@dataclass(frozen=True)
class NodeInfo:
    """One node: one process, one GPU."""

    address: str
    state: str
    """"down", "idle", "joined" or "draining"."""
    rank: int | None
    """In the group; None while it is in none."""
    device: str
    memory_total_bytes: int
    memory_used_bytes: int
    loaded_models: tuple[str, ...]
    pid: int
    problem: str


@dataclass(frozen=True)
class GroupInfo:
    """The process group."""

    state: str
    """"none", "forming" or "ready"."""
    epoch: int
    world_size: int
    meshes: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class QueueInfo:
    """Jobs that wait and run, and the tensors held for them."""

    waiting: int
    running: int
    bytes_in_flight: int
    bytes_limit: int


@dataclass(frozen=True)
class ModelCard:
    """A model that jobs can name."""

    name: str
    family: str
    latent_channels: int
    parameters: int
    fingerprint: str
    on_group: bool
    on_local: bool
    has_pipeline: bool
    size_multiple: int
    """Latent rows and columns must be multiples of it."""
    text_dim: int
    pooled_dim: int
    num_heads: int
    latent_format: LatentFormat
    """From its autoencoder's latents to its own and back; to a preview, if it has factors."""
    vae_factor: int
    """Pixels along one side of a latent cell."""
    default_shift: float | None
    """Of the noise schedule, where a job says nothing; None: the family's."""
    default_guidance: float | None
    """Distilled guidance, where a conditioning says nothing; None: the model takes none."""
    dimensions: Mapping[str, int]
    """Of the transformer, as its family names them."""


@dataclass(frozen=True)
class LocalSamplerInfo:
    """The coordinator's own sampler."""

    available: bool
    device: str
    problem: str


@dataclass(frozen=True)
class ClusterSnapshot:
    """All of it."""

    version: str
    nodes: tuple[NodeInfo, ...]
    group: GroupInfo
    queue: QueueInfo
    models: tuple[ModelCard, ...]
    local: LocalSamplerInfo

    @property
    def ready(self) -> bool:
        """Whether jobs can run as they are meant to.

        On the group; on the local sampler where no nodes are configured.
        """
        return self.group.state == "ready" if self.nodes else self.local.available

    def model(self, name: str) -> ModelCard:
        """The model of that name. Raises UnknownModel, which names those there are."""
        for card in self.models:
            if card.name == name:
                return card
        known = ", ".join(card.name for card in self.models) or "none yet"
        raise UnknownModel(
            f"unknown model {name!r}; this cluster serves: {known}", field="job.model"
        )


def read_cluster(message: pb.GetClusterResponse) -> ClusterSnapshot:
    """From its message."""
    group, queue, local = message.group, message.queue, message.local
    return ClusterSnapshot(
        version=message.version,
        nodes=tuple(_node(node) for node in message.nodes),
        group=GroupInfo(
            state=_GROUP_STATES.get(group.state, "unknown"),
            epoch=group.epoch,
            world_size=group.world_size,
            meshes=tuple(group.meshes),
            problem=group.problem,
        ),
        queue=QueueInfo(queue.waiting, queue.running, queue.bytes_in_flight, queue.bytes_limit),
        models=tuple(_model(model) for model in message.models),
        local=LocalSamplerInfo(local.available, local.device, local.problem),
    )


def _node(node: pb.Node) -> NodeInfo:
    return NodeInfo(
        address=node.address,
        state=_NODE_STATES.get(node.state, "unknown"),
        rank=node.rank if node.HasField("rank") else None,
        device=node.device,
        memory_total_bytes=node.memory_total_bytes,
        memory_used_bytes=node.memory_used_bytes,
        loaded_models=tuple(node.loaded_models),
        pid=node.pid,
        problem=node.problem,
    )


def _model(model: pb.Model) -> ModelCard:
    return ModelCard(
        name=model.name,
        family=model.family,
        latent_channels=model.latent_channels,
        parameters=model.parameters,
        fingerprint=model.fingerprint,
        on_group=model.on_group,
        on_local=model.on_local,
        has_pipeline=model.has_pipeline,
        size_multiple=model.size_multiple,
        text_dim=model.text_dim,
        pooled_dim=model.pooled_dim,
        num_heads=model.num_heads,
        latent_format=_latent_format(model),
        vae_factor=model.vae_factor,
        default_shift=model.default_shift if model.HasField("default_shift") else None,
        default_guidance=model.default_guidance if model.HasField("default_guidance") else None,
        dimensions=dict(model.dimensions),
    )


def _latent_format(model: pb.Model) -> LatentFormat:
    """Without colours, where the server tells none."""
    factors, bias = model.preview_factors, model.preview_bias
    coloured = len(factors) == 3 * model.latent_channels and len(bias) == 3
    red, green, blue = bias if coloured else (0.0, 0.0, 0.0)
    return LatentFormat(
        name=model.family,
        channels=model.latent_channels,
        scale=model.latent_scale,
        shift=model.latent_shift,
        rgb_factors=tuple(zip(*[iter(factors)] * 3, strict=True)) if coloured else (),
        rgb_bias=(red, green, blue),
    )
