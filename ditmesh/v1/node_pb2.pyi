from ditmesh.v1 import cluster_pb2 as _cluster_pb2
from ditmesh.v1 import job_pb2 as _job_pb2
from ditmesh.v1 import sampler_pb2 as _sampler_pb2
from ditmesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_CANCELLED: _ClassVar[StopReason]
    STOP_REASON_DEADLINE: _ClassVar[StopReason]
    STOP_REASON_PREEMPTED: _ClassVar[StopReason]
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_CANCELLED: StopReason
STOP_REASON_DEADLINE: StopReason
STOP_REASON_PREEMPTED: StopReason

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("incarnation", "pid", "device", "memory_total_bytes", "memory_used_bytes", "models", "epoch", "draining", "newest_epoch", "host", "loading")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    pid: int
    device: str
    memory_total_bytes: int
    memory_used_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[NodeModel]
    epoch: int
    draining: bool
    newest_epoch: int
    host: str
    loading: str
    def __init__(self, incarnation: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[NodeModel, _Mapping]]] = ..., epoch: _Optional[int] = ..., draining: bool = ..., newest_epoch: _Optional[int] = ..., host: _Optional[str] = ..., loading: _Optional[str] = ...) -> None: ...

class NodeModel(_message.Message):
    __slots__ = ("model", "loaded")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    model: _cluster_pb2.Model
    loaded: bool
    def __init__(self, model: _Optional[_Union[_cluster_pb2.Model, _Mapping]] = ..., loaded: bool = ...) -> None: ...

class JoinGroupRequest(_message.Message):
    __slots__ = ("epoch", "rank", "world_size", "rendezvous", "meshes", "timeout_seconds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    MESHES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    rank: int
    world_size: int
    rendezvous: str
    meshes: _containers.RepeatedCompositeFieldContainer[MeshSpec]
    timeout_seconds: float
    def __init__(self, epoch: _Optional[int] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., rendezvous: _Optional[str] = ..., meshes: _Optional[_Iterable[_Union[MeshSpec, _Mapping]]] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class MeshSpec(_message.Message):
    __slots__ = ("ranks", "ulysses", "ring", "cfg")
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ULYSSES_FIELD_NUMBER: _ClassVar[int]
    RING_FIELD_NUMBER: _ClassVar[int]
    CFG_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    ulysses: int
    ring: int
    cfg: int
    def __init__(self, ranks: _Optional[_Iterable[int]] = ..., ulysses: _Optional[int] = ..., ring: _Optional[int] = ..., cfg: _Optional[int] = ...) -> None: ...

class JoinGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveGroupRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class LeaveGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("job", "chunk", "start", "stop", "shared", "offered", "pass_on", "at_once", "memory")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    PASS_ON_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    job: RunJob
    chunk: _tensor_pb2.TensorChunk
    start: StartRun
    stop: StopRun
    shared: _tensor_pb2.SharedTensors
    offered: _tensor_pb2.SharedTensors
    pass_on: bool
    at_once: bool
    memory: _tensor_pb2.CallMemory
    def __init__(self, job: _Optional[_Union[RunJob, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., start: _Optional[_Union[StartRun, _Mapping]] = ..., stop: _Optional[_Union[StopRun, _Mapping]] = ..., shared: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ..., offered: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ..., pass_on: bool = ..., at_once: bool = ..., memory: _Optional[_Union[_tensor_pb2.CallMemory, _Mapping]] = ...) -> None: ...

class RunJob(_message.Message):
    __slots__ = ("epoch", "mesh", "job", "deadline_seconds", "traceparent")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    mesh: int
    job: _job_pb2.JobSpec
    deadline_seconds: float
    traceparent: str
    def __init__(self, epoch: _Optional[int] = ..., mesh: _Optional[int] = ..., job: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., deadline_seconds: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class StartRun(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRun(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: StopReason
    def __init__(self, reason: _Optional[_Union[StopReason, str]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("needed", "ready", "state", "chunk", "result", "done", "passed", "written", "ended")
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    needed: _tensor_pb2.TensorsNeeded
    ready: RunReady
    state: StateUpdate
    chunk: _tensor_pb2.TensorChunk
    result: _sampler_pb2.SampleResult
    done: RunDone
    passed: _tensor_pb2.SharedTensors
    written: bool
    ended: RunDone
    def __init__(self, needed: _Optional[_Union[_tensor_pb2.TensorsNeeded, _Mapping]] = ..., ready: _Optional[_Union[RunReady, _Mapping]] = ..., state: _Optional[_Union[StateUpdate, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., result: _Optional[_Union[_sampler_pb2.SampleResult, _Mapping]] = ..., done: _Optional[_Union[RunDone, _Mapping]] = ..., passed: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ..., written: bool = ..., ended: _Optional[_Union[RunDone, _Mapping]] = ...) -> None: ...

class RunReady(_message.Message):
    __slots__ = ("begun",)
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    begun: bool
    def __init__(self, begun: bool = ...) -> None: ...

class StateUpdate(_message.Message):
    __slots__ = ("tensors", "state", "sigma", "preview")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    state: _job_pb2.JobState
    sigma: float
    preview: _tensor_pb2.InlineTensor
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., state: _Optional[_Union[_job_pb2.JobState, _Mapping]] = ..., sigma: _Optional[float] = ..., preview: _Optional[_Union[_tensor_pb2.InlineTensor, _Mapping]] = ...) -> None: ...

class RunDone(_message.Message):
    __slots__ = ("stopped", "seconds")
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    stopped: StopReason
    seconds: float
    def __init__(self, stopped: _Optional[_Union[StopReason, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class FetchStateRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class FetchStateResponse(_message.Message):
    __slots__ = ("state", "chunk")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    state: StateUpdate
    chunk: _tensor_pb2.TensorChunk
    def __init__(self, state: _Optional[_Union[StateUpdate, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ...) -> None: ...

class PredictStepRequest(_message.Message):
    __slots__ = ("open", "call", "chunk", "start", "shared", "traceparent", "memory", "at_once")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    open: PredictStepOpen
    call: _sampler_pb2.PredictCall
    chunk: _tensor_pb2.TensorChunk
    start: StartRun
    shared: _tensor_pb2.SharedTensors
    traceparent: str
    memory: _tensor_pb2.CallMemory
    at_once: bool
    def __init__(self, open: _Optional[_Union[PredictStepOpen, _Mapping]] = ..., call: _Optional[_Union[_sampler_pb2.PredictCall, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., start: _Optional[_Union[StartRun, _Mapping]] = ..., shared: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ..., traceparent: _Optional[str] = ..., memory: _Optional[_Union[_tensor_pb2.CallMemory, _Mapping]] = ..., at_once: bool = ...) -> None: ...

class PredictStepOpen(_message.Message):
    __slots__ = ("epoch", "mesh", "model", "weight_patches", "tensors")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PATCHES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    mesh: int
    model: str
    weight_patches: _containers.RepeatedCompositeFieldContainer[_job_pb2.WeightPatch]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    def __init__(self, epoch: _Optional[int] = ..., mesh: _Optional[int] = ..., model: _Optional[str] = ..., weight_patches: _Optional[_Iterable[_Union[_job_pb2.WeightPatch, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ...) -> None: ...

class PredictStepResponse(_message.Message):
    __slots__ = ("needed", "ready", "result", "chunk", "error", "written")
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    needed: _tensor_pb2.TensorsNeeded
    ready: RunReady
    result: _sampler_pb2.PredictResult
    chunk: _tensor_pb2.TensorChunk
    error: _sampler_pb2.CallError
    written: bool
    def __init__(self, needed: _Optional[_Union[_tensor_pb2.TensorsNeeded, _Mapping]] = ..., ready: _Optional[_Union[RunReady, _Mapping]] = ..., result: _Optional[_Union[_sampler_pb2.PredictResult, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., error: _Optional[_Union[_sampler_pb2.CallError, _Mapping]] = ..., written: bool = ...) -> None: ...
