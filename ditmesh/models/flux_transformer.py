"""The Flux.1 transformer for one process: diffusers' module, with the timestep kept in fp32."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

TIME_SCALE = 1000.0
"""Timestep (0..1) and guidance are scaled by this before their sinusoidal embedding."""


class FluxTransformer(FluxTransformer2DModel):  # type: ignore[misc]  # diffusers is untyped
    """diffusers' Flux.1, same weights, same result in fp32.

    In bf16, diffusers rounds the timestep to bf16 before it embeds it: 734 becomes 736, and the
    fastest sinusoids turn by more than a radian. ComfyUI does not round it, so neither does this.
    The guidance is rounded, there and here, as in the reference code the model was trained with.
    """

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
        """Velocity [B,N,4C] for packed tokens, in a tuple; arguments as in diffusers.

        Args:
            hidden_states: image tokens [B,N,4C].
            encoder_hidden_states: text tokens [B,T,D].
            pooled_projections: [B,P].
            timestep: sigma, fp32 [B].
            img_ids: position of each image token [N,3].
            txt_ids: position of each text token [T,3].
            guidance: [B], or None for a model without guidance embedding.
        """
        image = self.x_embedder(hidden_states)
        text = self.context_embedder(encoder_hidden_states)
        embedded = [timestep.to(torch.float32) * TIME_SCALE]
        if guidance is not None:
            embedded.append(guidance.to(image.dtype) * TIME_SCALE)
        temb = self.time_text_embed(*embedded, pooled_projections)
        rotary = self.pos_embed(torch.cat((txt_ids, img_ids)))
        # The first block of a kind gets its inputs in memory laid out as the others get theirs:
        # tensors of their own, then parts of one. Else a compiler makes two versions of each kind.
        text, image = text.clone(), image.clone()
        for block in self.transformer_blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                image_rotary_emb=rotary,
            )
        length = text.shape[1]
        joint = torch.cat((text, image), dim=1)
        text, image = joint[:, :length], joint[:, length:]
        for block in self.single_transformer_blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                image_rotary_emb=rotary,
            )
        return (self.proj_out(self.norm_out(image, temb)),)
