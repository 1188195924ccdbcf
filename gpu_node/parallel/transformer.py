"""Flux on several ranks: xfuser's wrapper, exact for any image and text length.

By itself xfuser's wrapper attends to the padding of an image that does not divide, and counts
text that does not divide once per rank. Here both streams are padded evenly (`tokens`), and each
attention leaves the padded keys out. Where everything divides, nothing is padded, no key is
selected, and the path is xfuser's own. Import after `xfuser_setup.prepare`.

To a compiler the whole of attention, exchange between ranks included, is one operation of which
it knows the output's shape: neither another picture size nor another group changes what it has
compiled, and no group is held by compiled code.

Shapes: B batch, N image tokens, T text tokens, S tokens of one rank, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY
from xfuser.model_executor.layers.usp import USP
from xfuser.model_executor.models.transformers.transformer_flux import (
    xFuserFlux1Transformer2DWrapper,
)

from ditmesh.models.flux_transformer import FluxTransformer
from gpu_node.parallel import attention, xfuser_state
from gpu_node.parallel.tokens import TokenLayout

BACKEND = "ditmesh"
"""The name under which xfuser finds `attend`."""


@dataclass(frozen=True, eq=False)
class Padding:
    """The index tensors of a `TokenLayout` on one device; None means that nothing is padded."""

    layout: TokenLayout
    text: Tensor | None
    image: Tensor | None
    keys: tuple[Tensor | None, ...]
    """For each ring rank, the valid keys that its ranks hold."""

    def ring_blocks(self, ring_rank: int) -> Iterator[Tensor | None]:
        """Valid keys in the order in which a ring rank meets the blocks: its own, then back."""
        ring = self.layout.ring
        return (self.keys[(ring_rank - step) % ring] for step in range(ring))


@lru_cache(maxsize=16)
def padding(layout: TokenLayout, device: torch.device) -> Padding:
    """The index tensors of a layout; recent ones are kept, as a job's steps repeat them."""

    def index(positions: list[int]) -> Tensor:
        return torch.tensor(positions, dtype=torch.int64, device=device)

    if layout.divides:
        return Padding(layout, None, None, (None,) * layout.ring)
    return Padding(
        layout,
        index(layout.text_positions()),
        index(layout.image_positions()),
        tuple(index(layout.valid_keys(ring_rank)) for ring_rank in range(layout.ring)),
    )


@dataclass(frozen=True, eq=False)
class Pass:
    """What attention needs to know of a forward pass, beside its arguments."""

    padding: Padding
    kernel: attention.Kernel


_pass: Pass | None = None
"""The forward pass that this process is in, as xfuser's state is the process's own."""


@contextmanager
def passing(current: Pass) -> Iterator[None]:
    """Have `share` work for a forward pass inside the block."""
    global _pass
    before, _pass = _pass, current
    try:
        yield
    finally:
        _pass = before


class FluxAttention:
    """Joint attention of a Flux block over all ranks; diffusers calls it a processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of one rank's tokens to all ranks' tokens; arguments as in diffusers."""
        query, key, value = _project(attn, hidden_states, "")
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text_query, text_key, text_value = _project(attn, encoder_hidden_states, "add_")
            query = torch.cat((attn.norm_added_q(text_query), query), dim=1)
            key = torch.cat((attn.norm_added_k(text_key), key), dim=1)
            value = torch.cat((text_value, value), dim=1)
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        attended = share_compiled if torch.compiler.is_compiling() else share
        joined = attended(query, key, value).flatten(2, 3)
        if encoder_hidden_states is None:
            return joined
        text_length = encoder_hidden_states.shape[1]
        text, image = joined[:, :text_length], joined[:, text_length:]
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def share(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one rank's tokens to all ranks' tokens, each [B,S,H,D]; contiguous."""
    assert _pass is not None
    sequence = xfuser_state.current()
    out_BHSD: Tensor = USP(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        combine_qkv_a2a=True,
        backend=BACKEND,
        attention_kwargs={
            "kernel": _pass.kernel,
            "valid_keys": _pass.padding.ring_blocks(sequence.ring_rank),
            "merged": sequence.ring_world_size > 1,
        },
    )
    return out_BHSD.transpose(1, 2).to(query.dtype).contiguous()


share_compiled = torch.library.custom_op(
    "ditmesh::share_attention",
    share,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value) -> Tensor",
)
share_compiled.register_fake(
    lambda query, key, value: torch.empty_like(query, memory_format=torch.contiguous_format)
)


def _project(attn: Any, tokens: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B,S,H,D] of one stream."""
    names = (
        (f"{prefix}q_proj", f"{prefix}k_proj", f"{prefix}v_proj")
        if prefix
        else ("to_q", "to_k", "to_v")
    )
    query, key, value = (
        getattr(attn, name)(tokens).unflatten(-1, (attn.heads, -1)) for name in names
    )
    return query, key, value


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    attention_kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Attention to the valid keys of one block, all [B,H,S,D], as xfuser calls it.

    Returns the output and, where ring attention has to merge blocks, the log-sum-exp [B,H,S].
    """
    valid = next(attention_kwargs["valid_keys"])
    if valid is not None:
        key, value = key.index_select(2, valid), value.index_select(2, valid)
    kernel: attention.Kernel = attention_kwargs["kernel"]
    return kernel(query, key, value, with_lse=attention_kwargs["merged"])


ATTENTION_FUNCTION_REGISTRY[BACKEND] = attend


class ExactFlux(xFuserFlux1Transformer2DWrapper, FluxTransformer):  # type: ignore[misc]
    """Flux.1 whose tokens are shared by the ranks of the installed `SequenceGroup`.

    xfuser's wrapper splits the tokens and gathers the result; between them runs
    `FluxTransformer`, next in the method resolution order. Same weights, same arguments and, on
    every rank, the same result as `FluxTransformer` on one.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.kernel: attention.Kernel = attention.auto
        self.compiled = False
        """Whether all that it will compile is compiled; see `compiling`."""
        processor = FluxAttention()
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            block.attn.processor = processor

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Velocity [B,N,4C] for all image tokens; arguments as in `FluxTransformer`, all whole."""
        sequence = xfuser_state.current()
        layout = TokenLayout(
            encoder_hidden_states.shape[1],
            hidden_states.shape[1],
            sequence.ulysses_world_size,
            sequence.ring_world_size,
        )
        if not layout.feasible:
            # Fewer tokens than ranks: each computes all of them.
            with xfuser_state.installed(xfuser_state.alone(sequence.rank, sequence.device)):
                return self.forward(
                    hidden_states,
                    encoder_hidden_states,
                    pooled_projections,
                    timestep,
                    img_ids,
                    txt_ids,
                    guidance,
                )
        pads = padding(layout, hidden_states.device)
        text_length = layout.text_padded * layout.parts
        image_length = layout.image_padded * layout.parts
        with passing(Pass(pads, self.kernel)), self._compiler():
            (output,) = super().forward(
                _spread(hidden_states, pads.image, image_length, 1),
                _spread(encoder_hidden_states, pads.text, text_length, 1),
                pooled_projections=pooled_projections,
                timestep=timestep,
                img_ids=_spread(img_ids, pads.image, image_length, 0),
                txt_ids=_spread(txt_ids, pads.text, text_length, 0),
                guidance=guidance,
            )
        return (output if pads.image is None else output.index_select(1, pads.image),)

    def _compiler(self) -> AbstractContextManager[Any]:
        """What compiled code does not cover, a single token say, runs as it is: nothing compiles
        in a job, where other ranks wait.
        """
        if not self.compiled:
            return nullcontext()
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("eager_on_recompile")
        return stance


def _spread(tokens: Tensor, positions: Tensor | None, length: int, dim: int) -> Tensor:
    """Tokens at their positions along `dim`, zeros between them."""
    if positions is None:
        return tokens
    shape = list(tokens.shape)
    shape[dim] = length
    return tokens.new_zeros(shape).index_copy_(dim, positions, tokens)
