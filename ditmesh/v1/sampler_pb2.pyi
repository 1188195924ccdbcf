from ditmesh.v1 import job_pb2 as _job_pb2
from ditmesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleRequest(_message.Message):
    __slots__ = ("job", "chunk", "cancel", "shared", "memory", "host", "offered")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.JobSpec
    chunk: _tensor_pb2.TensorChunk
    cancel: CancelJob
    shared: _tensor_pb2.SharedTensors
    memory: _tensor_pb2.CallMemory
    host: str
    offered: _tensor_pb2.SharedTensors
    def __init__(self, job: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., cancel: _Optional[_Union[CancelJob, _Mapping]] = ..., shared: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ..., memory: _Optional[_Union[_tensor_pb2.CallMemory, _Mapping]] = ..., host: _Optional[str] = ..., offered: _Optional[_Union[_tensor_pb2.SharedTensors, _Mapping]] = ...) -> None: ...

class CancelJob(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("needed", "accepted", "queue", "progress", "result", "chunk", "summary", "shares", "written", "ended")
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    needed: _tensor_pb2.TensorsNeeded
    accepted: JobAccepted
    queue: QueuePosition
    progress: Progress
    result: SampleResult
    chunk: _tensor_pb2.TensorChunk
    summary: JobSummary
    shares: bool
    written: bool
    ended: JobSummary
    def __init__(self, needed: _Optional[_Union[_tensor_pb2.TensorsNeeded, _Mapping]] = ..., accepted: _Optional[_Union[JobAccepted, _Mapping]] = ..., queue: _Optional[_Union[QueuePosition, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[SampleResult, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., summary: _Optional[_Union[JobSummary, _Mapping]] = ..., shares: bool = ..., written: bool = ..., ended: _Optional[_Union[JobSummary, _Mapping]] = ...) -> None: ...

class JobAccepted(_message.Message):
    __slots__ = ("job_id", "queue_position", "steps", "resumed", "latent_bytes")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    LATENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    queue_position: int
    steps: int
    resumed: bool
    latent_bytes: int
    def __init__(self, job_id: _Optional[str] = ..., queue_position: _Optional[int] = ..., steps: _Optional[int] = ..., resumed: bool = ..., latent_bytes: _Optional[int] = ...) -> None: ...

class QueuePosition(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "steps", "sigma", "executor", "preview")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    sigma: float
    executor: str
    preview: _tensor_pb2.InlineTensor
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., sigma: _Optional[float] = ..., executor: _Optional[str] = ..., preview: _Optional[_Union[_tensor_pb2.InlineTensor, _Mapping]] = ...) -> None: ...

class SampleResult(_message.Message):
    __slots__ = ("tensors", "latent", "state")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    latent: int
    state: _job_pb2.JobState
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., latent: _Optional[int] = ..., state: _Optional[_Union[_job_pb2.JobState, _Mapping]] = ...) -> None: ...

class JobSummary(_message.Message):
    __slots__ = ("job_id", "trace_id", "segments", "fallbacks", "queue_seconds", "run_seconds")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    trace_id: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    fallbacks: _containers.RepeatedCompositeFieldContainer[Fallback]
    queue_seconds: float
    run_seconds: float
    def __init__(self, job_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., fallbacks: _Optional[_Iterable[_Union[Fallback, _Mapping]]] = ..., queue_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("executor", "epoch", "ranks", "mesh", "first_step", "end_step", "seconds")
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    END_STEP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    executor: str
    epoch: int
    ranks: int
    mesh: str
    first_step: int
    end_step: int
    seconds: float
    def __init__(self, executor: _Optional[str] = ..., epoch: _Optional[int] = ..., ranks: _Optional[int] = ..., mesh: _Optional[str] = ..., first_step: _Optional[int] = ..., end_step: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("source", "target", "reason", "message", "at_step", "repeated_steps")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    AT_STEP_FIELD_NUMBER: _ClassVar[int]
    REPEATED_STEPS_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    reason: str
    message: str
    at_step: int
    repeated_steps: int
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., at_step: _Optional[int] = ..., repeated_steps: _Optional[int] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("open", "call", "chunk", "memory")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    open: PredictOpen
    call: PredictCall
    chunk: _tensor_pb2.TensorChunk
    memory: _tensor_pb2.CallMemory
    def __init__(self, open: _Optional[_Union[PredictOpen, _Mapping]] = ..., call: _Optional[_Union[PredictCall, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., memory: _Optional[_Union[_tensor_pb2.CallMemory, _Mapping]] = ...) -> None: ...

class PredictOpen(_message.Message):
    __slots__ = ("model", "fallback", "weight_patches", "tensors", "host")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PATCHES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    model: str
    fallback: _job_pb2.FallbackPolicy
    weight_patches: _containers.RepeatedCompositeFieldContainer[_job_pb2.WeightPatch]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    host: str
    def __init__(self, model: _Optional[str] = ..., fallback: _Optional[_Union[_job_pb2.FallbackPolicy, str]] = ..., weight_patches: _Optional[_Iterable[_Union[_job_pb2.WeightPatch, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., host: _Optional[str] = ...) -> None: ...

class PredictCall(_message.Message):
    __slots__ = ("call_id", "tensors", "x", "timestep", "conditioning", "unasked")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    UNASKED_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    x: int
    timestep: _containers.RepeatedScalarFieldContainer[float]
    conditioning: _job_pb2.Conditioning
    unasked: int
    def __init__(self, call_id: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., x: _Optional[int] = ..., timestep: _Optional[_Iterable[float]] = ..., conditioning: _Optional[_Union[_job_pb2.Conditioning, _Mapping]] = ..., unasked: _Optional[int] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("needed", "result", "chunk", "error", "shares", "written")
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    needed: _tensor_pb2.TensorsNeeded
    result: PredictResult
    chunk: _tensor_pb2.TensorChunk
    error: CallError
    shares: bool
    written: bool
    def __init__(self, needed: _Optional[_Union[_tensor_pb2.TensorsNeeded, _Mapping]] = ..., result: _Optional[_Union[PredictResult, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ..., error: _Optional[_Union[CallError, _Mapping]] = ..., shares: bool = ..., written: bool = ...) -> None: ...

class PredictResult(_message.Message):
    __slots__ = ("call_id", "output", "executor", "fallback_reason")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    output: _tensor_pb2.TensorSpec
    executor: str
    fallback_reason: str
    def __init__(self, call_id: _Optional[int] = ..., output: _Optional[_Union[_tensor_pb2.TensorSpec, _Mapping]] = ..., executor: _Optional[str] = ..., fallback_reason: _Optional[str] = ...) -> None: ...

class CallError(_message.Message):
    __slots__ = ("call_id", "status")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    status: bytes
    def __init__(self, call_id: _Optional[int] = ..., status: _Optional[bytes] = ...) -> None: ...
