"""Is this MODEL what the cluster serves? Shapes and fixed samples of every weight say so.

A name would be a guess, and a wrong guess a silently wrong picture. The cluster computes the same
digest from its files. It does not depend on the file's layout (fused or not) nor on whether
weights are held as float32, bfloat16 or float16.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ditmesh.models.flux_checkpoint import FluxConfig, diffusers_shapes, single_file_sources

SAMPLE = 16
"""Elements from each of the start, the middle and the end of a weight."""

_EXACT_TYPES = ("torch.float32", "torch.bfloat16", "torch.float16")
_PREFIX = "diffusion_model."
_DIGESTS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

Read = Callable[[str, int, int], bytes]
"""Elements [start, stop) of a stored tensor, flattened, as little-endian bfloat16."""


def digest(config: FluxConfig, read: Read) -> str:
    r"""SHA-256, hexadecimal, over the samples of every weight of the diffusers layout.

    For each tensor, by name: "<name> [<d0>,<d1>]\n" in ASCII, then its first, middle and last
    16 elements, or all of fewer than 48, rounded to bfloat16.
    """
    hasher = hashlib.sha256()
    shapes, sources = diffusers_shapes(config), single_file_sources(config)
    for name in sorted(shapes):
        shape = shapes[name]
        hasher.update(f"{name} [{','.join(map(str, shape))}]\n".encode())
        row = shape[1] if len(shape) > 1 else 1
        spans = [(stored, start * row, stop * row) for stored, start, stop in sources[name].parts]
        for start, stop in sample_ranges(sum(stop - start for _, start, stop in spans)):
            hasher.update(_across(spans, start, stop, read))
    return hasher.hexdigest()


def sample_ranges(count: int) -> list[tuple[int, int]]:
    """The elements that are sampled of `count`, as ranges."""
    if count < 3 * SAMPLE:
        return [(0, count)]
    middle = (count - SAMPLE) // 2
    return [(0, SAMPLE), (middle, middle + SAMPLE), (count - SAMPLE, count)]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> FluxConfig | None:
    """The dimensions of a Flux in ComfyUI's layout, from its names and shapes.

    None for another architecture, and for one with more or other weights than Flux.1.
    """
    try:
        hidden, token_channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.key_norm.scale"]
        config = FluxConfig(
            latent_channels=token_channels // 4,
            num_layers=_blocks(shapes, "double_blocks"),
            num_single_layers=_blocks(shapes, "single_blocks"),
            num_heads=hidden // head_dim,
            head_dim=head_dim,
            text_dim=shapes["txt_in.weight"][1],
            pooled_dim=shapes["vector_in.in_layer.weight"][1],
            guidance_embeds="guidance_in.in_layer.weight" in shapes,
            axes_dims=(),
        )
    except (KeyError, ValueError, IndexError):
        return None
    return config if single_file_shapes(config) == dict(shapes) else None


def single_file_shapes(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights as ComfyUI has them."""
    from ditmesh.models.flux_checkpoint import stored_shapes

    return stored_shapes(single_file_sources(config), diffusers_shapes(config))


def model_digest(patcher: Any) -> str:
    """The digest of a MODEL's own weights, whatever LoRA is merged into them at the moment.

    Empty for what is not a Flux.1 in full precision: quantised weights are not the same model.
    """
    base = patcher.model
    known = _DIGESTS.get(base)
    if known is None:
        known = _DIGESTS[base] = _compute(patcher)
    return known


def _compute(patcher: Any) -> str:
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in patcher.model.state_dict().items()
        if name.startswith(_PREFIX)
    }
    originals = {name.removeprefix(_PREFIX): entry.weight for name, entry in patcher.backup.items()}
    weights.update((name, value) for name, value in originals.items() if name in weights)
    config = config_of({name: tuple(value.shape) for name, value in weights.items()})
    if config is None or any(str(value.dtype) not in _EXACT_TYPES for value in weights.values()):
        return ""
    if any(value.device.type == "meta" for value in weights.values()):
        return ""
    return digest(config, lambda name, start, stop: _bfloat16(weights[name], start, stop))


def _bfloat16(weight: Any, start: int, stop: int) -> bytes:
    import torch

    elements = weight.detach().reshape(-1)[start:stop].to("cpu", torch.bfloat16)
    return bytes(elements.view(torch.int16).numpy().astype("<i2").tobytes())


def _across(spans: list[tuple[str, int, int]], start: int, stop: int, read: Read) -> bytes:
    """Elements [start, stop) of spans of stored tensors laid end to end."""
    found, offset = [], 0
    for stored, first, last in spans:
        low, high = max(start - offset, 0), min(stop - offset, last - first)
        if low < high:
            found.append(read(stored, first + low, first + high))
        offset += last - first
    return b"".join(found)


def _blocks(shapes: Mapping[str, tuple[int, ...]], kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}.")})
