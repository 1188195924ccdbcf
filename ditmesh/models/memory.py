"""How much memory a model takes, estimated from integers before anything is allocated."""

from __future__ import annotations

from ditmesh.models.flux_checkpoint import diffusers_shapes
from ditmesh.models.info import ModelInfo

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that a transformer computes in, by torch's names."""

TOKEN_WIDTHS = 20
"""Values alive at the peak of a block on one rank, in units of one token's hidden width.

Measured 15 in fp32 and 18 to 19 in bf16, where rotary position is still computed in fp32. The peak
is in a single-stream block, whose MLP (4 widths before and 4 after its activation) and attention
(query, key, value and output, joined with the MLP's to 5) are alive together.
"""

RING_WIDTHS = 6
"""What ring attention needs on top, beside keys and values of the whole ring (2 widths a rank)."""


def weights_bytes(info: ModelInfo, dtype: str, *, fp8_weights: bool = False) -> int:
    """The transformer's weights in `dtype`; each rank of a mesh holds all of them.

    With `fp8_weights` the linear layers of its blocks take a byte a weight, and `dtype` a row for
    the scale.
    """
    whole = info.num_parameters * DTYPE_BYTES[dtype]
    if not fp8_weights:
        return whole
    saved = sum(
        rows * (columns * (DTYPE_BYTES[dtype] - 1) - DTYPE_BYTES[dtype])
        for rows, columns in _block_matrices(info)
    )
    return whole - saved


def _block_matrices(info: ModelInfo) -> list[tuple[int, int]]:
    """Rows and columns of every linear layer of the repeated blocks."""
    return [
        (shape[0], shape[1])
        for name, shape in diffusers_shapes(info.config).items()
        if "transformer_blocks." in name and len(shape) == 2
    ]


def activations_bytes(
    info: ModelInfo,
    dtype: str,
    *,
    batch: int,
    height: int,
    width: int,
    text_tokens: int,
    ulysses: int = 1,
    ring: int = 1,
) -> int:
    """What a forward pass needs beside the weights, on one of the ranks that share a sequence.

    `height` and `width` are the latent's. Attention is assumed to be a flash kernel, whose
    scores are never stored. Modulation vectors and small change are not counted.
    """
    image_tokens = (height // info.patch_size) * (width // info.patch_size)
    tokens = -(-(image_tokens + text_tokens) // (ulysses * ring))
    widths = TOKEN_WIDTHS + (RING_WIDTHS + 2 * ring if ring > 1 else 0)
    return batch * tokens * info.num_heads * info.head_dim * widths * DTYPE_BYTES[dtype]


def memory_bytes(
    info: ModelInfo,
    dtype: str,
    *,
    batch: int = 1,
    height: int = 128,
    width: int = 128,
    text_tokens: int = 512,
    ulysses: int = 1,
    ring: int = 1,
    fp8_weights: bool = False,
) -> int:
    """Weights and activations together; the defaults are one 1024x1024 image.

    An estimate for budgeting: it was 5 to 30 % above what torch allocated on the CPU. A layer whose
    weights are in eight bits needs them in `dtype` while it runs: the largest is counted.
    """
    widened = max(rows * columns for rows, columns in _block_matrices(info)) * DTYPE_BYTES[dtype]
    weights = weights_bytes(info, dtype, fp8_weights=fp8_weights) + widened * fp8_weights
    return weights + activations_bytes(
        info,
        dtype,
        batch=batch,
        height=height,
        width=width,
        text_tokens=text_tokens,
        ulysses=ulysses,
        ring=ring,
    )
