from ditmesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FallbackPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FALLBACK_POLICY_UNSPECIFIED: _ClassVar[FallbackPolicy]
    FALLBACK_POLICY_ALLOW: _ClassVar[FallbackPolicy]
    FALLBACK_POLICY_FORBID: _ClassVar[FallbackPolicy]
    FALLBACK_POLICY_LOCAL_ONLY: _ClassVar[FallbackPolicy]
FALLBACK_POLICY_UNSPECIFIED: FallbackPolicy
FALLBACK_POLICY_ALLOW: FallbackPolicy
FALLBACK_POLICY_FORBID: FallbackPolicy
FALLBACK_POLICY_LOCAL_ONLY: FallbackPolicy

class JobSpec(_message.Message):
    __slots__ = ("job_id", "model", "sampler", "schedule", "seed", "cfg", "noise", "positive", "negative", "latent_tensor", "empty_latent", "noise_mask", "shift", "state", "stop_after_step", "return_state", "fallback", "preview", "tensors", "weight_patches")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CFG_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    LATENT_TENSOR_FIELD_NUMBER: _ClassVar[int]
    EMPTY_LATENT_FIELD_NUMBER: _ClassVar[int]
    NOISE_MASK_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STOP_AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    RETURN_STATE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PATCHES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    model: str
    sampler: str
    schedule: Schedule
    seed: int
    cfg: float
    noise: Noise
    positive: Conditioning
    negative: Conditioning
    latent_tensor: int
    empty_latent: EmptyLatent
    noise_mask: int
    shift: float
    state: JobState
    stop_after_step: int
    return_state: bool
    fallback: FallbackPolicy
    preview: Preview
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    weight_patches: _containers.RepeatedCompositeFieldContainer[WeightPatch]
    def __init__(self, job_id: _Optional[str] = ..., model: _Optional[str] = ..., sampler: _Optional[str] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., seed: _Optional[int] = ..., cfg: _Optional[float] = ..., noise: _Optional[_Union[Noise, _Mapping]] = ..., positive: _Optional[_Union[Conditioning, _Mapping]] = ..., negative: _Optional[_Union[Conditioning, _Mapping]] = ..., latent_tensor: _Optional[int] = ..., empty_latent: _Optional[_Union[EmptyLatent, _Mapping]] = ..., noise_mask: _Optional[int] = ..., shift: _Optional[float] = ..., state: _Optional[_Union[JobState, _Mapping]] = ..., stop_after_step: _Optional[int] = ..., return_state: bool = ..., fallback: _Optional[_Union[FallbackPolicy, str]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., weight_patches: _Optional[_Iterable[_Union[WeightPatch, _Mapping]]] = ...) -> None: ...

class WeightPatch(_message.Message):
    __slots__ = ("weight", "strength", "weight_scale", "slice", "low_rank", "diff")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SCALE_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    LOW_RANK_FIELD_NUMBER: _ClassVar[int]
    DIFF_FIELD_NUMBER: _ClassVar[int]
    weight: str
    strength: float
    weight_scale: float
    slice: WeightSlice
    low_rank: LowRank
    diff: int
    def __init__(self, weight: _Optional[str] = ..., strength: _Optional[float] = ..., weight_scale: _Optional[float] = ..., slice: _Optional[_Union[WeightSlice, _Mapping]] = ..., low_rank: _Optional[_Union[LowRank, _Mapping]] = ..., diff: _Optional[int] = ...) -> None: ...

class WeightSlice(_message.Message):
    __slots__ = ("dimension", "start", "length")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    dimension: int
    start: int
    length: int
    def __init__(self, dimension: _Optional[int] = ..., start: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class LowRank(_message.Message):
    __slots__ = ("up", "down", "alpha")
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    up: int
    down: int
    alpha: float
    def __init__(self, up: _Optional[int] = ..., down: _Optional[int] = ..., alpha: _Optional[float] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("named", "explicit")
    NAMED_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_FIELD_NUMBER: _ClassVar[int]
    named: NamedSchedule
    explicit: ExplicitSigmas
    def __init__(self, named: _Optional[_Union[NamedSchedule, _Mapping]] = ..., explicit: _Optional[_Union[ExplicitSigmas, _Mapping]] = ...) -> None: ...

class NamedSchedule(_message.Message):
    __slots__ = ("scheduler", "steps", "denoise", "start_step", "end_step", "keep_leftover_noise")
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DENOISE_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    END_STEP_FIELD_NUMBER: _ClassVar[int]
    KEEP_LEFTOVER_NOISE_FIELD_NUMBER: _ClassVar[int]
    scheduler: str
    steps: int
    denoise: float
    start_step: int
    end_step: int
    keep_leftover_noise: bool
    def __init__(self, scheduler: _Optional[str] = ..., steps: _Optional[int] = ..., denoise: _Optional[float] = ..., start_step: _Optional[int] = ..., end_step: _Optional[int] = ..., keep_leftover_noise: bool = ...) -> None: ...

class ExplicitSigmas(_message.Message):
    __slots__ = ("sigmas",)
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    sigmas: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sigmas: _Optional[_Iterable[float]] = ...) -> None: ...

class Noise(_message.Message):
    __slots__ = ("seeded", "tensor", "none")
    SEEDED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    NONE_FIELD_NUMBER: _ClassVar[int]
    seeded: SeededNoise
    tensor: int
    none: NoNoise
    def __init__(self, seeded: _Optional[_Union[SeededNoise, _Mapping]] = ..., tensor: _Optional[int] = ..., none: _Optional[_Union[NoNoise, _Mapping]] = ...) -> None: ...

class SeededNoise(_message.Message):
    __slots__ = ("batch_index",)
    BATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    batch_index: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, batch_index: _Optional[_Iterable[int]] = ...) -> None: ...

class NoNoise(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Conditioning(_message.Message):
    __slots__ = ("text", "pooled", "guidance", "extra")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    POOLED_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    text: int
    pooled: int
    guidance: _containers.RepeatedScalarFieldContainer[float]
    extra: _containers.ScalarMap[str, int]
    def __init__(self, text: _Optional[int] = ..., pooled: _Optional[int] = ..., guidance: _Optional[_Iterable[float]] = ..., extra: _Optional[_Mapping[str, int]] = ...) -> None: ...

class EmptyLatent(_message.Message):
    __slots__ = ("batch", "height", "width")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    batch: int
    height: int
    width: int
    def __init__(self, batch: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class JobState(_message.Message):
    __slots__ = ("step", "noise_draws", "sampler_revision", "latent", "history")
    class HistoryEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    NOISE_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_REVISION_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    step: int
    noise_draws: int
    sampler_revision: int
    latent: int
    history: _containers.ScalarMap[str, int]
    def __init__(self, step: _Optional[int] = ..., noise_draws: _Optional[int] = ..., sampler_revision: _Optional[int] = ..., latent: _Optional[int] = ..., history: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("every_steps",)
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    def __init__(self, every_steps: _Optional[int] = ...) -> None: ...
