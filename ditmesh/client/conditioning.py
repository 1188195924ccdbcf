"""What a client says about a picture, as tensors on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from ditmesh.errors import InvalidTensor
from ditmesh.tensors import WireTensor, as_wire
from ditmesh.v1 import job_pb2

TensorLike: TypeAlias = object
"""A numpy array, a torch tensor on any device, or a `WireTensor`.

float64 travels as float32; float32, float16, bfloat16 (torch only), uint8 and int64 as they are.
"""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Text conditioning of one branch, as the model's text encoders made it.

    A value: its tensors are read and hashed once, on first use, and must not be changed after.
    """

    text: TensorLike
    """[B or 1, T, D]"""
    pooled: TensorLike | None = None
    """[B or 1, P], for families that use one."""
    guidance: float | Sequence[float] | None = None
    """Distilled guidance, one value or one for each batch item. None: the family's default."""
    extra: Mapping[str, TensorLike] = field(default_factory=dict)
    """Further tensors that the family knows, by name."""

    @cached_property
    def tensors(self) -> Mapping[str, WireTensor]:
        """The tensors under "text", "pooled" and "extra.<name>", where they are.

        Raises InvalidTensor for what cannot be sent.
        """
        given = {"text": self.text, **{f"extra.{name}": t for name, t in self.extra.items()}}
        if self.pooled is not None:
            given["pooled"] = self.pooled
        return {name: to_wire(value, name, copy=False) for name, value in given.items()}

    @cached_property
    def wire(self) -> Mapping[str, WireTensor]:
        """As `tensors`, with their hashes."""
        return {name: tensor.hashed() for name, tensor in self.tensors.items()}

    @property
    def is_hashed(self) -> bool:
        """Whether `wire` takes no time."""
        return "wire" in self.__dict__

    def to_proto(self, table: TensorTable) -> job_pb2.Conditioning:
        """As a message, its tensors put into `table`."""
        at = {name: table.add(tensor) for name, tensor in self.wire.items()}
        return job_pb2.Conditioning(
            text=at["text"],
            pooled=at.get("pooled"),
            guidance=_values(self.guidance),
            extra={name: at[f"extra.{name}"] for name in self.extra},
        )


class TensorTable:
    """The tensors of one request; other fields refer to them by index."""

    def __init__(self) -> None:
        self.tensors: list[WireTensor] = []

    def add(self, tensor: WireTensor) -> int:
        """The tensor's index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def to_wire(value: TensorLike, field: str, *, copy: bool = True) -> WireTensor:
    """A tensor for the wire, as `as_wire`. Raises InvalidTensor, which names `field`."""
    try:
        return as_wire(value, copy=copy)
    except (InvalidTensor, ValueError) as error:
        raise InvalidTensor(f"{field}: {error}", field=field) from error


def _values(given: float | Sequence[float] | None) -> Sequence[float]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (int, float)) else given
