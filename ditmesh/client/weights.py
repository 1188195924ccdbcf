"""Changes of a model's weights that a client asks for, such as a LoRA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ditmesh.client.conditioning import TensorLike, TensorTable, to_wire
from ditmesh.errors import InvalidRequest
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as pb


@dataclass(frozen=True, eq=False)
class WeightPatch:
    """One change of one weight: scaled by `weight_scale`, then `strength` times the change added.

    The change is `diff`, or the low-rank product (alpha / rank) (up @ down). A value: its tensors
    are read and hashed once, on first use, and must not be changed after. Raises InvalidRequest
    unless it is one of both.
    """

    weight: str
    """By its name in the family's single-file layout: "double_blocks.0.img_attn.qkv.weight"."""
    strength: float = 1.0
    up: TensorLike | None = field(default=None, repr=False)
    """[rows, rank]"""
    down: TensorLike | None = field(default=None, repr=False)
    """[rank, columns]"""
    alpha: float | None = None
    """None: equal to the rank."""
    diff: TensorLike | None = field(default=None, repr=False)
    """With the shape of the weight, or of its slice."""
    weight_scale: float = 1.0
    slice: tuple[int, int, int] | None = None
    """The part that changes: 0 for rows or 1 for columns, the first of them, how many."""

    def __post_init__(self) -> None:
        thin = (self.up is not None, self.down is not None)
        if any(thin) != all(thin) or any(thin) == (self.diff is not None):
            raise InvalidRequest(
                f"the patch of {self.weight} needs either diff, or both up and down",
                field="weight_patches",
            )

    @cached_property
    def wire(self) -> Mapping[str, WireTensor]:
        """Its tensors by name, with their hashes. Raises InvalidTensor for what cannot be sent."""
        given = {"up": self.up, "down": self.down, "diff": self.diff}
        return {
            name: to_wire(value, f"the patch of {self.weight}: {name}").hashed()
            for name, value in given.items()
            if value is not None
        }

    def to_proto(self, table: TensorTable) -> pb.WeightPatch:
        """As a message, its tensors put into `table`."""
        at = {name: table.add(tensor) for name, tensor in self.wire.items()}
        message = pb.WeightPatch(
            weight=self.weight,
            strength=self.strength,
            weight_scale=self.weight_scale,
            diff=at.get("diff"),
        )
        if "up" in at:
            message.low_rank.CopyFrom(pb.LowRank(up=at["up"], down=at["down"], alpha=self.alpha))
        if self.slice is not None:
            dimension, start, length = self.slice
            message.slice.CopyFrom(pb.WeightSlice(dimension=dimension, start=start, length=length))
        return message


def patch_messages(patches: Iterable[WeightPatch], table: TensorTable) -> list[pb.WeightPatch]:
    """All of them in their order, their tensors put into `table`. Raises as `WeightPatch.wire`."""
    return [patch.to_proto(table) for patch in patches]
