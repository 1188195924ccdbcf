"""XDiTEncodePrompt and XDiTDecode: text encoders and autoencoder of the cluster's model."""

from __future__ import annotations

from typing import Any

from . import comfy_api, inputs


class XDiTEncodePrompt:
    """A prompt's conditioning, computed on the cluster."""

    CATEGORY = inputs.CATEGORY
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("For the positive or negative input of a sampler.",)
    FUNCTION = "encode"
    DESCRIPTION = (
        "Encodes a prompt with the text encoders of the cluster's model; nothing is downloaded."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The prompt, the distilled guidance, and which model."""
        return {
            "required": {
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "What the picture should show.",
                    },
                ),
                "guidance": (
                    "FLOAT",
                    {
                        "default": 3.5,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Distilled guidance of Flux models.",
                    },
                ),
                "model_name": inputs.MODEL_NAME,
            },
            "optional": {"xdit_dispatcher": inputs.DISPATCHER},
            "hidden": inputs.NODE_ID,
        }

    def encode(
        self,
        text: str,
        guidance: float,
        model_name: str,
        xdit_dispatcher: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """The conditioning; the node says when a prompt was too long."""
        from .pipeline import encode

        conditioning, cut = encode(xdit_dispatcher, model_name, text, guidance)
        if cut:
            comfy_api.show_text(unique_id, f"the prompt is too long: {cut} tokens were cut off")
        return {"result": (conditioning,)}


class XDiTDecode:
    """Pictures from latents, computed on the cluster."""

    CATEGORY = inputs.CATEGORY
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded pictures.",)
    FUNCTION = "decode"
    DESCRIPTION = (
        "Decodes latents with the autoencoder of the cluster's model; nothing is downloaded."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The latents, and which model."""
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "The latents to decode."}),
                "model_name": inputs.MODEL_NAME,
            },
            "optional": {"xdit_dispatcher": inputs.DISPATCHER},
        }

    def decode(
        self, samples: dict[str, Any], model_name: str, xdit_dispatcher: Any = None
    ) -> tuple[Any]:
        """The pictures [B,H,W,3]."""
        from .pipeline import decode

        return (decode(xdit_dispatcher, model_name, samples["samples"]),)
