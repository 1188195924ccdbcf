"""From weight patches as messages to what the model merges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ditmesh.executor.inputs import TensorReader
from ditmesh.models.patches import LowRank, Patch, PatchSet
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as pb


def patch_set(messages: Sequence[pb.WeightPatch], tensors: Sequence[WireTensor]) -> PatchSet | None:
    """The weight patches of a job or stream, their tensors on the CPU; None without any."""
    if not messages:
        return None
    reader = TensorReader(tensors, torch.device("cpu"))
    digest = hashlib.sha256()
    for message in messages:
        # Indices differ from request to request; what they stand for does not.
        named = pb.WeightPatch()
        named.CopyFrom(message)
        named.ClearField("change")
        digest.update(named.SerializeToString(deterministic=True))
        digest.update(f"{message.WhichOneof('change')} {message.low_rank.alpha}".encode())
        for index in _patch_tensors(message):
            digest.update(tensors[index].hashed().spec.sha256)
    return PatchSet(digest.digest(), tuple(_patch(message, reader) for message in messages))


def _patch_tensors(message: pb.WeightPatch) -> tuple[int, ...]:
    if message.WhichOneof("change") == "diff":
        return (message.diff,)
    return (message.low_rank.up, message.low_rank.down)


def _patch(message: pb.WeightPatch, reader: TensorReader) -> Patch:
    scale = message.strength
    change: LowRank | Tensor
    if message.WhichOneof("change") == "diff":
        change = reader[message.diff]
    else:
        change = LowRank(reader[message.low_rank.up], reader[message.low_rank.down])
        rank = change.up.shape[1]
        if message.low_rank.HasField("alpha"):
            scale *= message.low_rank.alpha / rank
    part = message.slice if message.HasField("slice") else None
    return Patch(
        weight=message.weight,
        scale=scale,
        change=change,
        weight_scale=message.weight_scale if message.HasField("weight_scale") else 1.0,
        dimension=part.dimension if part is not None else 0,
        start=part.start if part is not None else 0,
        length=part.length if part is not None else None,
    )
