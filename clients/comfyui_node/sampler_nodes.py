"""XDiTKSampler and XDiTKSamplerAdvanced: ComfyUI's samplers, run by a cluster."""

from __future__ import annotations

import functools
from typing import Any

from . import comfy_api, inputs
from .request import SamplingRequest

_STEPS = ("INT", {"default": 20, "min": 1, "max": 10000, "tooltip": "Number of denoising steps."})
_CFG = (
    "FLOAT",
    {
        "default": 8.0,
        "min": 0.0,
        "max": 100.0,
        "step": 0.1,
        "round": 0.01,
        "tooltip": "Classifier-free guidance: how much the prompt outweighs the negative one. "
        "At 1 the negative prompt is not computed; Flux wants 1.",
    },
)
_POSITIVE = ("CONDITIONING", {"tooltip": "What the picture should show."})
_NEGATIVE = ("CONDITIONING", {"tooltip": "What the picture should not show."})
_LATENT = ("LATENT", {"tooltip": "The latent to denoise. A mask on it limits where."})
_MODEL = (
    "MODEL",
    {"tooltip": "From xDiT Remote Model, or an ordinary one that the cluster has as well."},
)


class _Sampler:
    """What both samplers have in common."""

    CATEGORY = inputs.CATEGORY
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)
    FUNCTION = "sample"

    @staticmethod
    def _run(request: SamplingRequest, dispatcher: Any, node_id: str | None) -> dict[str, Any]:
        from .sampling import sample

        show = functools.partial(comfy_api.show_text, node_id)
        latent, report = sample(request, dispatcher, show)
        show(report.text)
        return {"ui": {"xdit": [report.data]}, "result": (latent,)}


class XDiTKSampler(_Sampler):
    """KSampler on a cluster of GPUs, with KSampler's inputs."""

    DESCRIPTION = (
        "Like KSampler, with the same pictures, but sampled on a ditmesh cluster of GPUs. "
        "ComfyUI's own sampler takes over when the cluster cannot."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """KSampler's inputs in its order, and the dispatcher."""
        return {
            "required": {
                "model": _MODEL,
                "seed": inputs.seed("Seed of the noise."),
                "steps": _STEPS,
                "cfg": _CFG,
                "sampler_name": (
                    comfy_api.sampler_names(),
                    {"tooltip": "The sampling algorithm."},
                ),
                "scheduler": (
                    comfy_api.scheduler_names(),
                    {"tooltip": "How the noise is taken away over the steps."},
                ),
                "positive": _POSITIVE,
                "negative": _NEGATIVE,
                "latent_image": _LATENT,
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "How much of the latent is made anew; below 1 keeps its shapes.",
                    },
                ),
            },
            "optional": {"xdit_dispatcher": inputs.DISPATCHER},
            "hidden": inputs.NODE_ID,
        }

    def sample(
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float = 1.0,
        xdit_dispatcher: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """The denoised latent, and for the node's face who made it."""
        request = SamplingRequest(
            model=model,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            positive=positive,
            negative=negative,
            latent=latent_image,
            denoise=denoise,
        )
        return self._run(request, xdit_dispatcher, unique_id)


class XDiTKSamplerAdvanced(_Sampler):
    """KSampler (Advanced) on a cluster of GPUs, with its inputs."""

    DESCRIPTION = (
        "Like KSampler (Advanced), with the same pictures, but sampled on a ditmesh cluster of "
        "GPUs. ComfyUI's own sampler takes over when the cluster cannot."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs of KSampler (Advanced) in its order, and the dispatcher."""
        return {
            "required": {
                "model": _MODEL,
                "add_noise": (
                    ["enable", "disable"],
                    {"tooltip": "Disable for a latent that holds noise already."},
                ),
                "noise_seed": inputs.seed("Seed of the noise."),
                "steps": _STEPS,
                "cfg": _CFG,
                "sampler_name": (
                    comfy_api.sampler_names(),
                    {"tooltip": "The sampling algorithm."},
                ),
                "scheduler": (
                    comfy_api.scheduler_names(),
                    {"tooltip": "How the noise is taken away over the steps."},
                ),
                "positive": _POSITIVE,
                "negative": _NEGATIVE,
                "latent_image": _LATENT,
                "start_at_step": (
                    "INT",
                    {"default": 0, "min": 0, "max": 10000, "tooltip": "First step to take."},
                ),
                "end_at_step": (
                    "INT",
                    {"default": 10000, "min": 0, "max": 10000, "tooltip": "Step to stop before."},
                ),
                "return_with_leftover_noise": (
                    ["disable", "enable"],
                    {"tooltip": "Enable to go on from the last step with another sampler."},
                ),
            },
            "optional": {"xdit_dispatcher": inputs.DISPATCHER},
            "hidden": inputs.NODE_ID,
        }

    def sample(
        self,
        model: Any,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
        xdit_dispatcher: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """The denoised latent, and for the node's face who made it."""
        request = SamplingRequest(
            model=model,
            seed=noise_seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            positive=positive,
            negative=negative,
            latent=latent_image,
            disable_noise=add_noise == "disable",
            start_step=start_at_step,
            last_step=end_at_step,
            force_full_denoise=return_with_leftover_noise == "disable",
        )
        return self._run(request, xdit_dispatcher, unique_id)
