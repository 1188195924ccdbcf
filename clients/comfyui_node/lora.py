"""LoRA: from the patches that stock nodes put on a MODEL to changes that the cluster merges.

ComfyUI keeps patches as (strength, change, factor of the weight, slice, function) for each weight.
The changes sent are low-rank products (up, down, alpha) and plain differences; every other kind
is refused, because a dropped one would be a silently wrong picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .fingerprint import PREFIX


class NotSendable(RuntimeError):
    """A patch that the cluster cannot merge; the message is the reason, for the user."""


@dataclass(frozen=True, eq=False)
class WeightPatch:
    """One change of one weight: W := W * weight_scale, then W += strength * change on the slice.

    The change is `diff`, or alpha / r * (up @ down) with up [rows, r] and down [r, columns];
    without alpha the factor is 1. `slice` is dimension, start and length.
    """

    weight: str
    strength: float
    up: Any = field(default=None, repr=False)
    down: Any = field(default=None, repr=False)
    alpha: float | None = None
    diff: Any = field(default=None, repr=False)
    weight_scale: float = 1.0
    slice: tuple[int, int, int] | None = None


def weight_patches(patcher: Any) -> tuple[WeightPatch, ...]:
    """The patches of a MODEL, in the order in which ComfyUI applies them to each weight.

    Raises:
        NotSendable: one of them is of a kind that the cluster cannot merge.
    """
    return tuple(_patches(patcher.patches))


def sendable(patcher: Any) -> dict[str, Any]:
    """The option of a job or stream that has a MODEL's patches merged; none for no patches.

    Raises:
        NotSendable: a patch that the cluster cannot merge, or a client that cannot send any.
    """
    patches = weight_patches(patcher)
    if not patches:
        return {}
    try:
        from ditmesh.client import WeightPatch as Sent
    except ImportError as error:
        raise NotSendable(
            "the installed ditmesh cannot send LoRA; update it (pip install -U ditmesh)"
        ) from error
    names = [field.name for field in fields(WeightPatch)]
    sent = [Sent(**{name: getattr(patch, name) for name in names}) for patch in patches]
    return {"weight_patches": sent}


def _patches(patches: dict[str, list[Sequence[Any]]]) -> Iterator[WeightPatch]:
    for key, entries in patches.items():
        for strength, change, weight_scale, offset, function in entries:
            if function is not None:
                raise NotSendable(f"a patch of {key} has a function of its own")
            yield _patch(
                key.removeprefix(PREFIX),
                change,
                strength=float(strength),
                weight_scale=float(weight_scale),
                slice=None if offset is None else tuple(int(value) for value in offset),
            )


def _patch(weight: str, change: Any, **common: Any) -> WeightPatch:
    kind = getattr(change, "name", None)
    if kind == "lora":
        return _low_rank(weight, change.weights, **common)
    if kind is not None:
        raise NotSendable(f"the patch of {weight} is a {kind}; the cluster merges plain LoRA only")
    if isinstance(change, tuple):
        if len(change) == 1:
            return WeightPatch(weight, diff=change[0], **common)
        name, values = change
        if name == "diff" and not (len(values) > 1 and values[1].get("pad_weight")):
            return WeightPatch(weight, diff=values[0], **common)
        if name == "lora":
            return _low_rank(weight, values, **common)
        raise NotSendable(f"the patch of {weight} is of the kind {name!r}")
    raise NotSendable(f"the patch of {weight} is a merge of models")


def _low_rank(weight: str, values: Sequence[Any], **common: Any) -> WeightPatch:
    up, down, alpha, *rest = values
    extras = ("a middle matrix", "DoRA", "another shape")
    for value, what in zip(rest, extras, strict=False):
        if value is not None:
            raise NotSendable(f"the LoRA of {weight} uses {what}; the cluster merges plain LoRA")
    return WeightPatch(
        weight,
        up=up.flatten(start_dim=1),
        down=down.flatten(start_dim=1),
        alpha=None if alpha is None else float(alpha),
        **common,
    )
