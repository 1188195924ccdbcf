"""LoRA: from the patches that stock nodes put on a MODEL to changes that the cluster merges.

ComfyUI keeps patches as (strength, change, factor of the weight, slice, function) for each weight.
The changes sent are low-rank products (up, down, alpha) and plain differences; every other kind
is refused, because a dropped one would be a silently wrong picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ditmesh.client import WeightPatch

from .fingerprint import PREFIX

_REMEMBERED = 4
_PREPARED: dict[Any, tuple[WeightPatch, ...]] = {}
"""Patches as they are sent, by ComfyUI's id of the set: hashing a large LoRA takes seconds."""


class NotSendable(RuntimeError):
    """A patch that the cluster cannot merge; the message is the reason, for the user."""


def weight_patches(patcher: Any) -> tuple[WeightPatch, ...]:
    """The patches of a MODEL, in the order in which ComfyUI applies them to each weight.

    Raises:
        NotSendable: one of them is of a kind that the cluster cannot merge.
    """
    return tuple(_patches(patcher.patches))


def sendable(patcher: Any) -> dict[str, Any]:
    """The option of a job or stream that has a MODEL's patches merged; none for no patches.

    Raises:
        NotSendable: a patch that the cluster cannot merge.
    """
    if not patcher.patches:
        return {}
    version = patcher.patches_uuid
    if version not in _PREPARED:
        while len(_PREPARED) >= _REMEMBERED:
            del _PREPARED[next(iter(_PREPARED))]
        _PREPARED[version] = weight_patches(patcher)
    return {"weight_patches": _PREPARED[version]}


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
