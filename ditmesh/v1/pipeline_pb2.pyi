from ditmesh.v1 import job_pb2 as _job_pb2
from ditmesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_F32: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_F32: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat

class EncodePromptRequest(_message.Message):
    __slots__ = ("model", "prompt", "hashes_only")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HASHES_ONLY_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    hashes_only: bool
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., hashes_only: bool = ...) -> None: ...

class EncodePromptResponse(_message.Message):
    __slots__ = ("encoded", "chunk")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    encoded: EncodedPrompt
    chunk: _tensor_pb2.TensorChunk
    def __init__(self, encoded: _Optional[_Union[EncodedPrompt, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ...) -> None: ...

class EncodedPrompt(_message.Message):
    __slots__ = ("tensors", "conditioning", "truncated_tokens")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    conditioning: _job_pb2.Conditioning
    truncated_tokens: int
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., conditioning: _Optional[_Union[_job_pb2.Conditioning, _Mapping]] = ..., truncated_tokens: _Optional[int] = ...) -> None: ...

class DecodeLatentRequest(_message.Message):
    __slots__ = ("latent", "chunk")
    LATENT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    latent: LatentToDecode
    chunk: _tensor_pb2.TensorChunk
    def __init__(self, latent: _Optional[_Union[LatentToDecode, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ...) -> None: ...

class LatentToDecode(_message.Message):
    __slots__ = ("model", "latent", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    latent: _tensor_pb2.TensorSpec
    format: ImageFormat
    def __init__(self, model: _Optional[str] = ..., latent: _Optional[_Union[_tensor_pb2.TensorSpec, _Mapping]] = ..., format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class DecodeLatentResponse(_message.Message):
    __slots__ = ("needed", "images", "chunk")
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    needed: _tensor_pb2.TensorsNeeded
    images: DecodedImages
    chunk: _tensor_pb2.TensorChunk
    def __init__(self, needed: _Optional[_Union[_tensor_pb2.TensorsNeeded, _Mapping]] = ..., images: _Optional[_Union[DecodedImages, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.TensorChunk, _Mapping]] = ...) -> None: ...

class DecodedImages(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ...) -> None: ...
