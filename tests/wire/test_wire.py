"""Bytes that were once on a wire mean for ever what they meant then."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ditmesh.errors import by_reason
from ditmesh.rpc_status import from_status_bytes
from ditmesh.tensors import DataType, content_hash
from ditmesh.v1 import job_pb2, sampler_pb2, tensor_pb2
from tests.wire.filled import FILES, message_types
from tests.wire.record import ERRORS, METHODS, load, methods, values

GOLDEN = load()
TYPES = {kind.full_name: kind for kind in message_types()}


def parsed(entry: dict[str, Any]) -> Message:
    message: Message = GetMessageClass(TYPES[entry["type"]])()
    message.ParseFromString(bytes.fromhex(entry["bytes"]))
    return message


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_old_bytes_are_read_as_they_were_meant(name: str) -> None:
    """Every field has its old number, type, name and place in a oneof."""
    assert values(parsed(GOLDEN[name])) == GOLDEN[name]["values"]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_same_values_are_written_as_the_same_bytes(name: str) -> None:
    """So a program that was never updated reads what this one writes."""
    entry = GOLDEN[name]
    message = ParseDict(entry["values"], GetMessageClass(TYPES[entry["type"]])())
    assert message.SerializeToString(deterministic=True).hex() == entry["bytes"]


@pytest.mark.parametrize("kind", list(message_types()), ids=lambda kind: kind.name)
def test_every_field_is_guarded(kind: Descriptor) -> None:
    """A new field without golden bytes fails here: run `python -m tests.wire.record`."""
    kept = [parsed(entry) for entry in GOLDEN.values() if entry["type"] == kind.full_name]
    assert kept, "no golden bytes"
    guarded = {field.name for message in kept for field, _ in message.ListFields()}
    assert guarded == {field.name for field in kind.fields}


def test_enum_values_keep_their_numbers() -> None:
    """Names and numbers of every enum, where numbers alone are on the wire."""
    assert {
        value.name: value.number
        for file in FILES
        for enum in file.DESCRIPTOR.enum_types_by_name.values()
        for value in enum.values
    }.items() >= {
        "NODE_STATE_DOWN": 1,
        "NODE_STATE_IDLE": 2,
        "NODE_STATE_JOINED": 3,
        "GROUP_STATE_NONE": 1,
        "GROUP_STATE_FORMING": 2,
        "GROUP_STATE_READY": 3,
        "FALLBACK_POLICY_UNSPECIFIED": 0,
        "FALLBACK_POLICY_ALLOW": 1,
        "FALLBACK_POLICY_FORBID": 2,
        "FALLBACK_POLICY_LOCAL_ONLY": 3,
        "IMAGE_FORMAT_F32": 1,
        "IMAGE_FORMAT_PNG": 2,
        "DATA_TYPE_F32": 1,
        "DATA_TYPE_F16": 2,
        "DATA_TYPE_BF16": 3,
        "DATA_TYPE_U8": 4,
        "DATA_TYPE_I64": 5,
        "STOP_REASON_CANCELLED": 1,
        "STOP_REASON_DEADLINE": 2,
        "STOP_REASON_PREEMPTED": 3,
    }.items()


def test_calls_keep_their_paths_and_kinds() -> None:
    """A call that once existed exists, under its path, with its messages and streams."""
    assert methods() == json.loads(METHODS.read_text())


@pytest.mark.parametrize("reason", sorted(by_reason()))
def test_errors_are_read_as_they_were_meant(reason: str) -> None:
    """The status of every error: its class, sentence, field and delay."""
    error = from_status_bytes(bytes.fromhex(json.loads(ERRORS.read_text())[reason]))
    assert type(error) is by_reason()[reason]
    assert (error.message, error.field, error.retry_after_s) == (
        "Zu groß 😀",
        "job.tensors[3]",
        2.5,
    )


@pytest.mark.parametrize(
    ("data_type", "shape", "data", "digest"),
    [
        (
            DataType.F32,
            (),
            b"\0\0\x80?",
            "8738d4ecca71a345b79a764c9d02feecd8168a1bce584773cdda26567a92f30f",
        ),
        (
            DataType.F16,
            (2, 3),
            bytes(12),
            "851cb27bb8d926e8c8135336be325bbd8775b3c02a5d5da664e0ee00a93cbb4f",
        ),
        (
            DataType.BF16,
            (1, 2, 1),
            b"\x80?\0\0",
            "bb01306eeda3d0ffa1b412827411109589169dab6c101600071ef4344905bf25",
        ),
        (
            DataType.U8,
            (5,),
            b"bytes",
            "ec2d16b7d4e77d42012ae5ac8046d70f042b87c24b8ee50e19e6efc49464ba59",
        ),
        (
            DataType.I64,
            (1,),
            b"\xff" * 8,
            "77ec92c64cb70d84e8ab927f24cce5a98b097535a1a8172841b6799f0d9b161d",
        ),
    ],
)
def test_content_hashes_are_what_they_were(
    data_type: DataType, shape: tuple[int, ...], data: bytes, digest: str
) -> None:
    """A hash that a client computed years ago names the same tensor."""
    assert content_hash(data_type, shape, data).hex() == digest


def test_what_a_newer_program_adds_is_passed_over() -> None:
    """Unknown fields and unknown enum values harm nothing that is known."""
    known = sampler_pb2.Progress(step=3, steps=8, executor="group")
    newer = known.SerializeToString() + b"\xfa\x7f\x03new"  # field 2047, three bytes
    read = sampler_pb2.Progress.FromString(newer)
    assert (read.step, read.steps, read.executor) == (3, 8, "group")
    spec = tensor_pb2.TensorSpec.FromString(b"\x08\x63\x12\x01\x07")
    assert (spec.data_type, list(spec.shape)) == (99, [7])


def test_absent_is_not_zero() -> None:
    """Fields that may be absent tell it from 0, on the wire too."""
    absent, zero = job_pb2.JobSpec(), job_pb2.JobSpec(cfg=0.0, shift=0.0, noise_mask=0)
    assert absent.SerializeToString() == b""
    read = job_pb2.JobSpec.FromString(zero.SerializeToString())
    for name in ("cfg", "shift", "noise_mask"):
        assert read.HasField(name)
        assert not absent.HasField(name)
