from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_DOWN: _ClassVar[NodeState]
    NODE_STATE_IDLE: _ClassVar[NodeState]
    NODE_STATE_JOINED: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]

class GroupState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_STATE_UNSPECIFIED: _ClassVar[GroupState]
    GROUP_STATE_NONE: _ClassVar[GroupState]
    GROUP_STATE_FORMING: _ClassVar[GroupState]
    GROUP_STATE_READY: _ClassVar[GroupState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_DOWN: NodeState
NODE_STATE_IDLE: NodeState
NODE_STATE_JOINED: NodeState
NODE_STATE_DRAINING: NodeState
GROUP_STATE_UNSPECIFIED: GroupState
GROUP_STATE_NONE: GroupState
GROUP_STATE_FORMING: GroupState
GROUP_STATE_READY: GroupState

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("version", "nodes", "group", "queue", "models", "local")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    version: str
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    group: Group
    queue: Queue
    models: _containers.RepeatedCompositeFieldContainer[Model]
    local: LocalSampler
    def __init__(self, version: _Optional[str] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., group: _Optional[_Union[Group, _Mapping]] = ..., queue: _Optional[_Union[Queue, _Mapping]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., local: _Optional[_Union[LocalSampler, _Mapping]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("address", "state", "rank", "device", "memory_total_bytes", "memory_used_bytes", "loaded_models", "pid", "problem")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADED_MODELS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    address: str
    state: NodeState
    rank: int
    device: str
    memory_total_bytes: int
    memory_used_bytes: int
    loaded_models: _containers.RepeatedScalarFieldContainer[str]
    pid: int
    problem: str
    def __init__(self, address: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., rank: _Optional[int] = ..., device: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., loaded_models: _Optional[_Iterable[str]] = ..., pid: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("state", "epoch", "world_size", "meshes", "problem")
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    MESHES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    state: GroupState
    epoch: int
    world_size: int
    meshes: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    def __init__(self, state: _Optional[_Union[GroupState, str]] = ..., epoch: _Optional[int] = ..., world_size: _Optional[int] = ..., meshes: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ...) -> None: ...

class Queue(_message.Message):
    __slots__ = ("waiting", "running", "bytes_in_flight", "bytes_limit")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    running: int
    bytes_in_flight: int
    bytes_limit: int
    def __init__(self, waiting: _Optional[int] = ..., running: _Optional[int] = ..., bytes_in_flight: _Optional[int] = ..., bytes_limit: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "family", "latent_channels", "parameters", "fingerprint", "on_group", "on_local", "has_pipeline", "size_multiple", "text_dim", "pooled_dim", "num_heads", "latent_scale", "latent_shift", "preview_factors", "preview_bias", "dimensions", "vae_factor", "default_shift", "default_guidance")
    class DimensionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LATENT_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ON_GROUP_FIELD_NUMBER: _ClassVar[int]
    ON_LOCAL_FIELD_NUMBER: _ClassVar[int]
    HAS_PIPELINE_FIELD_NUMBER: _ClassVar[int]
    SIZE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_DIM_FIELD_NUMBER: _ClassVar[int]
    POOLED_DIM_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LATENT_SHIFT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FACTORS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_BIAS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VAE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SHIFT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    latent_channels: int
    parameters: int
    fingerprint: str
    on_group: bool
    on_local: bool
    has_pipeline: bool
    size_multiple: int
    text_dim: int
    pooled_dim: int
    num_heads: int
    latent_scale: float
    latent_shift: float
    preview_factors: _containers.RepeatedScalarFieldContainer[float]
    preview_bias: _containers.RepeatedScalarFieldContainer[float]
    dimensions: _containers.ScalarMap[str, int]
    vae_factor: int
    default_shift: float
    default_guidance: float
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., latent_channels: _Optional[int] = ..., parameters: _Optional[int] = ..., fingerprint: _Optional[str] = ..., on_group: bool = ..., on_local: bool = ..., has_pipeline: bool = ..., size_multiple: _Optional[int] = ..., text_dim: _Optional[int] = ..., pooled_dim: _Optional[int] = ..., num_heads: _Optional[int] = ..., latent_scale: _Optional[float] = ..., latent_shift: _Optional[float] = ..., preview_factors: _Optional[_Iterable[float]] = ..., preview_bias: _Optional[_Iterable[float]] = ..., dimensions: _Optional[_Mapping[str, int]] = ..., vae_factor: _Optional[int] = ..., default_shift: _Optional[float] = ..., default_guidance: _Optional[float] = ...) -> None: ...

class LocalSampler(_message.Message):
    __slots__ = ("available", "device", "problem")
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    available: bool
    device: str
    problem: str
    def __init__(self, available: bool = ..., device: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...
