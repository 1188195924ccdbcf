"""Changes of a model's weights for one job, such as a LoRA (Hu et al. 2021, arXiv:2106.09685).

A patch names a weight as the family's single file does; the module holds diffusers' parameters,
each of which is rows of one or more of those weights. Merging works in fp32, a parameter at a
time, and rounds once; the originals are read from the model's files again when the patches go.

Weights in eight bits are merged from their originals too, and dithered: the change of a LoRA is
mostly smaller than the distance of two values in eight bits, and would be rounded away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.models.flux_checkpoint import Source, diffusers_shapes, single_file_sources
from ditmesh.models.flux_checkpoint import stored_shapes as shapes_of_stored
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import fp8_layer, originals


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change `up @ down`, of [rows, rank] and [rank, columns]."""

    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product."""
        return (self.up.shape[0], self.down.shape[1])

    def dense(self, device: torch.device) -> Tensor:
        """The product, fp32."""
        return torch.mm(self.up.to(device, torch.float32), self.down.to(device, torch.float32))


@dataclass(frozen=True, eq=False)
class Patch:
    """`weight *= weight_scale`, then `weight[slice] += scale * change`.

    `scale` is the strength, times alpha / rank for a low-rank change. `dimension`, `start` and
    `length` are the slice; a length of None is the whole weight.
    """

    weight: str
    scale: float
    change: LowRank | Tensor
    weight_scale: float = 1.0
    dimension: int = 0
    start: int = 0
    length: int | None = None

    def delta(self, device: torch.device) -> Tensor:
        """What is added to the slice, fp32."""
        if isinstance(self.change, LowRank):
            return self.change.dense(device) * self.scale
        return self.change.to(device, torch.float32) * self.scale


@dataclass(frozen=True)
class PatchSet:
    """Patches in their order, and a key that is equal for equal sets."""

    key: bytes
    patches: tuple[Patch, ...]


def check(patches: Sequence[Patch], info: ModelInfo) -> None:
    """Refuse patches that do not fit the model.

    Raises:
        InvalidRequest: a weight that the model does not have, or a slice outside it.
        InvalidTensor: a change of another shape than the slice.
    """
    shapes = shapes_of_stored(single_file_sources(info.config), diffusers_shapes(info.config))
    for i, patch in enumerate(patches):
        field = f"weight_patches[{i}]"
        shape = shapes.get(patch.weight)
        if shape is None:
            raise InvalidRequest(
                f"{field} changes {patch.weight!r}, which model {info.name!r} does not have",
                field=f"{field}.weight",
            )
        wanted = list(shape)
        if patch.length is not None:
            if patch.dimension >= len(shape):
                raise InvalidRequest(f"{field} slices a dimension that is not there", field=field)
            if patch.start + patch.length > shape[patch.dimension]:
                raise InvalidRequest(
                    f"{field} slices {patch.weight} [{', '.join(map(str, shape))}] beyond its end",
                    field=f"{field}.slice",
                )
            wanted[patch.dimension] = patch.length
        if list(patch.change.shape) != wanted:
            raise InvalidTensor(
                f"{field} adds {list(patch.change.shape)} to {patch.weight}, where {wanted} is "
                "needed",
                field=field,
            )


def affected(patches: Iterable[Patch], info: ModelInfo) -> tuple[str, ...]:
    """The diffusers names of the parameters that patches change."""
    weights = {patch.weight for patch in patches}
    return tuple(
        name
        for name, source in single_file_sources(info.config).items()
        if any(stored in weights for stored, _, _ in source.parts)
    )


@torch.no_grad()
def merge(module: nn.Module, info: ModelInfo, patches: Sequence[Patch]) -> None:
    """Change the parameters of an unpatched module in place. `check` the patches first.

    Raises DamagedModel where weights in eight bits need files that are no longer there.
    """
    by_weight: dict[str, list[Patch]] = defaultdict(list)
    for patch in patches:
        by_weight[patch.weight].append(patch)
    sources = single_file_sources(info.config)
    in_eight_bits: list[str] = []
    for name in affected(patches, info):
        if fp8_layer(module, name) is not None:
            in_eight_bits.append(name)
            continue
        parameter = module.get_parameter(name)
        merged = parameter.to(torch.float32, copy=True)
        _merge_parameter(merged, sources[name], by_weight)
        parameter.copy_(merged)
    if in_eight_bits:
        for name, original in originals(module, info, in_eight_bits):
            merged = original.to(torch.float32, copy=True)
            _merge_parameter(merged, sources[name], by_weight)
            layer = fp8_layer(module, name)
            assert layer is not None
            layer.store(merged, dither=True)


def _merge_parameter(
    merged: Tensor, source: Source, by_weight: Mapping[str, Sequence[Patch]]
) -> None:
    """Apply to one parameter, fp32, what changes the stored weights that it is made of."""
    row = 0
    for stored, first, end in source.parts:
        rows = merged[row : row + end - first]
        row += end - first
        for patch in by_weight.get(stored, ()):
            if patch.weight_scale != 1.0:
                rows *= patch.weight_scale
            _add(rows, first, end, patch)


def _add(rows: Tensor, first: int, end: int, patch: Patch) -> None:
    """Add a patch's change to `rows`, which are rows `first` to `end` of its weight."""
    delta = patch.delta(rows.device)
    if patch.length is None:
        rows += delta[first:end]
    elif patch.dimension == 1:
        rows[:, patch.start : patch.start + patch.length] += delta[first:end]
    else:
        low = max(first, patch.start)
        high = min(end, patch.start + patch.length)
        if low < high:
            rows[low - first : high - first] += delta[low - patch.start : high - patch.start]
