"""One name for the same weights, whatever file layout or element type they are stored in.

A client that holds weights of its own learns from it whether the cluster serves the very same
ones: a file's name would be a guess. `cluster.proto` has the definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ditmesh.models.flux_checkpoint import Source

SAMPLE = 16
"""Elements from each of the start, the middle and the end of a tensor."""

Read = Callable[[str, int, int], bytes]
"""Elements [start, stop) of a stored tensor, flattened, as little-endian bfloat16."""


def weights_fingerprint(
    shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, Source], read: Read
) -> bytes:
    """SHA-256 over samples of every tensor of the diffusers layout.

    `shapes` are those of the diffusers layout; `sources` tell where each of its tensors lies in
    what is stored, which `read` samples.
    """
    digest = hashlib.sha256()
    for name in sorted(shapes):
        shape = shapes[name]
        digest.update(f"{name} [{','.join(map(str, shape))}]\n".encode())
        row = shape[1] if len(shape) > 1 else 1
        spans = [(stored, start * row, stop * row) for stored, start, stop in sources[name].parts]
        for start, stop in sample_ranges(sum(stop - start for _, start, stop in spans)):
            digest.update(_across(spans, start, stop, read))
    return digest.digest()


def sample_ranges(count: int) -> list[tuple[int, int]]:
    """The elements that are sampled of `count`, as ranges."""
    if count < 3 * SAMPLE:
        return [(0, count)]
    middle = (count - SAMPLE) // 2
    return [(0, SAMPLE), (middle, middle + SAMPLE), (count - SAMPLE, count)]


def to_bfloat16(values: npt.NDArray[np.float32]) -> bytes:
    """fp32 values rounded to bfloat16, to nearest with ties to even, little-endian."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _across(spans: Sequence[tuple[str, int, int]], start: int, stop: int, read: Read) -> bytes:
    """Elements [start, stop) of spans of stored tensors laid end to end."""
    found, offset = [], 0
    for stored, first, last in spans:
        low, high = max(start - offset, 0), min(stop - offset, last - first)
        if low < high:
            found.append(read(stored, first + low, first + high))
        offset += last - first
    return b"".join(found)
