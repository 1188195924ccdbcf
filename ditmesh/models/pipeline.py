"""Text encoders and VAE of a diffusers pipeline folder: what stands around the transformer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ditmesh.errors import DamagedModel

# transformers tells at every start which optional packages it does without.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
diffusers_logging.disable_progress_bar()

_LONGEST_PROMPT = 512
"""Flux's own limit in T5 tokens; a tokenizer may have a lower one."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's conditioning: text [1, T, D], pooled [1, P]; tokens that were cut off."""

    text: Tensor
    pooled: Tensor
    truncated_tokens: int


class Pipeline:
    """Encodes prompts and decodes latents as diffusers' `FluxPipeline` does."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load everything but the transformer. Raises DamagedModel naming what is wrong."""
        try:
            self._pipe: Any = FluxPipeline.from_pretrained(
                folder,
                transformer=None,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
            ).to(device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DamagedModel(f"{folder}: the pipeline cannot be loaded: {error}") from error
        self._pipe.set_progress_bar_config(disable=True)
        self._device = device

    @torch.no_grad()
    def encode(self, prompt: str) -> EncodedPrompt:
        """The conditioning of a prompt, which may be empty; one too long is cut."""
        tokenizer = self._pipe.tokenizer_2
        limit = min(int(tokenizer.model_max_length), _LONGEST_PROMPT)
        logger = logging.getLogger("diffusers.pipelines.flux.pipeline_flux")
        level = logger.level
        # It warns of every cut; the caller is told in the answer.
        logger.setLevel(logging.ERROR)
        try:
            text, pooled, _ = self._pipe.encode_prompt(
                prompt, None, device=self._device, max_sequence_length=limit
            )
        finally:
            logger.setLevel(level)
        tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        return EncodedPrompt(text, pooled, max(tokens - limit, 0))

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Pictures, fp32 [B, H, W, 3] with values 0 to 1, of latents in model space."""
        vae = self._pipe.vae
        latent = latent_BCHW.to(self._device, vae.dtype)
        latent = latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pictures: Tensor = vae.decode(latent, return_dict=False)[0].float()
        return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()
