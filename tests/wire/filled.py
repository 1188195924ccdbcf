"""Messages in which every field is set, one for each alternative of a oneof."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ditmesh.v1 import cluster_pb2, job_pb2, node_pb2, pipeline_pb2, sampler_pb2, tensor_pb2

FILES = (cluster_pb2, job_pb2, node_pb2, pipeline_pb2, sampler_pb2, tensor_pb2)
_DEPTH = 1
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: -(2**31),
    FieldDescriptor.CPPTYPE_INT64: -(2**63),
    FieldDescriptor.CPPTYPE_UINT32: 2**32,
    FieldDescriptor.CPPTYPE_UINT64: 2**64,
}


def message_types() -> Iterator[Descriptor]:
    """Every message of the contract."""
    for file in FILES:
        yield from file.DESCRIPTOR.message_types_by_name.values()


def filled(kind: Descriptor) -> Iterator[tuple[str, Message]]:
    """Names and messages that together set every field of `kind`."""
    alternatives = [
        field for one in kind.oneofs if len(one.fields) > 1 for field in one.fields
    ]  # a oneof of a single field is proto3's way of telling absent from zero
    yield kind.name, _fill(kind, _first_of_each(kind), _DEPTH)
    for field in alternatives:
        chosen = {**_first_of_each(kind), field.containing_oneof.name: field}
        yield f"{kind.name}.{field.name}", _fill(kind, chosen, _DEPTH)


def _first_of_each(kind: Descriptor) -> dict[str, FieldDescriptor]:
    return {one.name: one.fields[0] for one in kind.oneofs}


def _fill(kind: Descriptor, chosen: dict[str, FieldDescriptor], depth: int) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if field.containing_oneof and chosen[field.containing_oneof.name] is not field:
            continue
        _set(message, field, depth)
    return message


def _set(message: Message, field: FieldDescriptor, depth: int) -> None:
    target = getattr(message, field.name)
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        for word in ("a", "ü"):
            target[word] = _scalar(nested.fields_by_name["value"], len(word))
    elif field.is_repeated and nested is not None:
        target.extend(_nested(nested, depth) for _ in range(2))
    elif field.is_repeated:
        target.extend(_scalar(field, index) for index in range(3))
    elif nested is not None:
        target.CopyFrom(_nested(nested, depth))
    else:
        setattr(message, field.name, _scalar(field, 0))


def _nested(kind: Descriptor, depth: int) -> Message:
    if depth == 0:
        return GetMessageClass(kind)()
    return _fill(kind, _first_of_each(kind), depth - 1)


def _scalar(field: FieldDescriptor, index: int) -> object:
    """A value that uses the whole range of its type, near the end for `index` 0."""
    cpp = field.cpp_type
    if field.enum_type is not None:
        return field.enum_type.values[-1 - index % len(field.enum_type.values)].number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\0\x7f\x80\xff" if index == 0 else b"\0"
    if cpp == FieldDescriptor.CPPTYPE_STRING:
        return f"{field.name} ü 漢 😀"
    if cpp == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if cpp in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return (0.1, -2.5e-7, 1e30)[index]
    limit = _INTEGERS[cpp]
    return limit + index if limit < 0 else limit - 1 - index
