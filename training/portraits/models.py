"""The models and their configs, and the diffusers pipeline that they make up.

Everything that learns is in ``Trainable``: the transformer and both text encoders, trained jointly
and from nothing. The autoencoder is computed (``autoencoder.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from training.portraits.tokenization import CLIP_LENGTH


@dataclass(frozen=True)
class ModelConfig:
    """Sizes. Eight heads, so that up to eight ranks can share the attention."""

    heads: int = 8
    head_dim: int = 16
    rope_axes: tuple[int, int, int] = (4, 6, 6)
    double_blocks: int = 2
    single_blocks: int = 4
    text_dim: int = 128
    text_layers: int = 2
    text_heads: int = 4
    shift: float = 1.0
    """Timestep shift of the shipped scheduler."""


class Trainable(nn.Module):
    """The transformer and the two text encoders."""

    def __init__(self, config: ModelConfig, clip: CLIPTokenizer, t5: PreTrainedTokenizerFast):
        super().__init__()
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=config.double_blocks,
            num_single_layers=config.single_blocks,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            joint_attention_dim=config.text_dim,
            pooled_projection_dim=config.text_dim,
            guidance_embeds=False,
            axes_dims_rope=config.rope_axes,
        )
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=config.text_dim,
                intermediate_size=2 * config.text_dim,
                projection_dim=config.text_dim,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=CLIP_LENGTH,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=config.text_dim,
                d_kv=config.text_dim // config.text_heads,
                d_ff=2 * config.text_dim,
                num_layers=config.text_layers,
                num_heads=config.text_heads,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                pad_token_id=t5.pad_token_id,
                eos_token_id=t5.eos_token_id,
            )
        )
        _small_output_init(self.transformer)
        _neighbour_attention_init(self.t5)
        _sinusoidal_position_init(self.clip)

    def encode(
        self, clip_ids: torch.Tensor, t5_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The pooled embedding [B, D] and the text tokens [B, T, D].

        Args:
            clip_ids: [B, L] up to the end-of-text token; what follows it has no effect.
            t5_ids: [B, T], padded; as in ``FluxPipeline``, padding is attended to.
        """
        return self.clip(input_ids=clip_ids).pooler_output, self.t5(input_ids=t5_ids)[0]

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, pooled: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """The velocity of packed latents [B, 64, 64] at noise levels [B] in [0, 1]."""
        velocity: torch.Tensor = self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            txt_ids=torch.zeros(text.shape[1], 3, device=text.device),
            img_ids=image_ids(noisy.shape[1]).to(text.device),
            return_dict=False,
        )[0]
        return velocity


def image_ids(tokens: int) -> torch.Tensor:
    """Positions [tokens, 3] of a square of image tokens, as ``FluxPipeline`` numbers them."""
    side = round(tokens**0.5)
    ids = torch.zeros(side, side, 3)
    ids[..., 1] = torch.arange(side)[:, None]
    ids[..., 2] = torch.arange(side)[None, :]
    return ids.reshape(tokens, 3)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] to patches of 2x2: [B, H/2 * W/2, 4C], as ``FluxPipeline`` packs."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, height // 2 * (width // 2), 4 * channels
    )


def build_pipeline(
    model: Trainable,
    autoencoder: AutoencoderTiny,
    clip: CLIPTokenizer,
    t5: PreTrainedTokenizerFast,
    shift: float,
) -> FluxPipeline:
    """The pipeline that is shipped, and that draws the sample sheets while training."""
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=autoencoder,
        text_encoder=model.clip,
        tokenizer=clip,
        text_encoder_2=model.t5,
        tokenizer_2=t5,
        transformer=model.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _small_output_init(transformer: FluxTransformer2DModel) -> None:
    """Starts every block near the identity: gates and shifts from adaLN at zero (DiT, 2022)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            if ".norm" in name and name.endswith("linear"):
                module.weight.zero_()
                module.bias.zero_()
            else:
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
    transformer.norm_out.linear.weight.zero_()
    transformer.norm_out.linear.bias.zero_()
    transformer.proj_out.weight.zero_()


NEIGHBOUR_OFFSETS = (-1, -2, 1)
"""Where the first heads of T5 look at the start: a word's colour stands just before it, mostly."""
NEIGHBOUR_BIAS = 4.0


@torch.no_grad()
def _neighbour_attention_init(t5: T5EncoderModel) -> None:
    """Starts all heads but the last of T5 on a neighbouring token, by their relative biases.

    Which part of the portrait a colour belongs to is settled by the words beside it. Heads that
    look there from the start learn the binding in minutes; heads that look everywhere first learn
    a bag of words, and leave it late. Buckets count as in T5 (2020): ``0`` is the token itself,
    ``1..7`` so many before it, and the second half of the table what comes after.
    """
    attention = t5.encoder.block[0].layer[0].SelfAttention
    table = attention.relative_attention_bias.weight
    table.zero_()
    for head, offset in zip(range(table.shape[1] - 1), NEIGHBOUR_OFFSETS, strict=True):
        table[abs(offset) + (table.shape[0] // 2 if offset > 0 else 0), head] = NEIGHBOUR_BIAS


@torch.no_grad()
def _sinusoidal_position_init(clip: CLIPTextModel) -> None:
    """Starts the learnt positions of CLIP as sinusoids (Vaswani et al., 2017).

    A step to the token before is then one rotation everywhere, and quick to find.
    """
    embedding = clip.embeddings.position_embedding.weight
    count, width = embedding.shape
    rates = torch.exp(-math.log(2 * count) * torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * rates
    scale = clip.embeddings.token_embedding.weight.std() * math.sqrt(2)
    embedding.copy_(scale * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))
