"""Everything this pack asks of ComfyUI, imported when it is asked and not before.

Supported: ComfyUI 0.3.44 and later, whose samplers the cluster's are equal to; earlier versions
computed some of them differently. What newer versions added is used where it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from .request import SamplingRequest


def sampler_names() -> list[str]:
    """Samplers of this ComfyUI."""
    from comfy.samplers import KSampler

    return list(KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """Schedulers of this ComfyUI."""
    from comfy.samplers import KSampler

    return list(KSampler.SCHEDULERS)


def raise_if_cancelled() -> None:
    """Raises ComfyUI's own exception once the user has pressed Cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()


def with_model_wrappers(
    forward: Callable[..., Any], module: Any, transformer_options: Mapping[str, Any]
) -> Callable[..., Any]:
    """`forward` inside whatever nodes wrap around a diffusion model (caches, for example)."""
    from comfy import patcher_extension

    wrappers = patcher_extension.get_all_wrappers(
        patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
    )
    executor = patcher_extension.WrapperExecutor.new_class_executor(forward, module, wrappers)
    run: Callable[..., Any] = executor.execute
    return run


def pad_to_patch_size(x: Any, patch_size: int) -> Any:
    """A latent whose sides are multiples of the patch size, as ComfyUI pads them."""
    if not any(side % patch_size for side in x.shape[2:]):
        return x
    from comfy.ldm.common_dit import pad_to_patch_size as pad

    return pad(x, (patch_size, patch_size))


def show_text(node_id: str | None, text: str) -> None:
    """Show a line inside a node while it runs and after."""
    # ComfyUI's server is there already, or this runs without one.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    send = getattr(server, "send_progress_text", None)
    if send is not None and node_id is not None:
        send(text, node_id)


def run_ksampler(request: SamplingRequest) -> dict[str, Any]:
    """ComfyUI's own sampler; the sampled LATENT."""
    from nodes import common_ksampler

    (latent,) = common_ksampler(
        request.model,
        request.seed,
        request.steps,
        request.cfg,
        request.sampler_name,
        request.scheduler,
        request.positive,
        request.negative,
        request.latent,
        denoise=request.denoise,
        disable_noise=request.disable_noise,
        start_step=request.start_step,
        last_step=request.last_step,
        force_full_denoise=request.force_full_denoise,
    )
    found: dict[str, Any] = latent
    return found


def widened_latent(request: SamplingRequest) -> Any:
    """The latent [B,C,H,W]; an empty one gets the channels of the model."""
    from comfy.sample import fix_empty_latent_channels

    return fix_empty_latent_channels(request.model, request.latent["samples"])


def levels(request: SamplingRequest) -> list[float]:
    """The noise levels that ComfyUI's sampler would visit, from first to last.

    One or none when there is nothing to sample.
    """
    from comfy.samplers import KSampler

    sigmas = KSampler(
        request.model,
        steps=request.steps,
        device="cpu",
        sampler=request.sampler_name,
        scheduler=request.scheduler,
        denoise=request.denoise,
        model_options=request.model.model_options,
    ).sigmas.tolist()
    return cut_levels(sigmas, request)


def cut_levels(sigmas: list[float], request: SamplingRequest) -> list[float]:
    """What start and end step leave of a schedule, as KSampler Advanced means them."""
    end = request.last_step
    if end is not None and end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1]
        if request.force_full_denoise and sigmas:
            sigmas = [*sigmas[:-1], 0.0]
    start = request.start_step
    if start is None:
        return sigmas
    return sigmas[start:] if start < len(sigmas) - 1 else []


def samples_on_cpu(patcher: Any) -> bool:
    """Whether ComfyUI would sample this MODEL on the CPU."""
    return bool(patcher.load_device.type == "cpu")


def to_model_space(patcher: Any, latent: Any) -> Any:
    """A latent as the model sees it; an empty one stays empty."""
    latent_format = patcher.get_model_object("latent_format")
    return latent_format.process_in(latent) if bool(latent.any()) else latent


def from_model_space(patcher: Any, latent: Any) -> Any:
    """A numpy latent in model space as ComfyUI passes latents on."""
    import torch
    from comfy.model_management import intermediate_device

    samples = torch.from_numpy(latent).to(torch.float32)
    latent_format = patcher.get_model_object("latent_format")
    return latent_format.process_out(samples).to(intermediate_device())


def prepared_mask(mask: Any, shape: Any) -> Any:
    """A noise mask [B,1,h,w] of the latent's own size, resized and repeated as ComfyUI does."""
    from comfy.utils import reshape_mask

    return reshape_mask(mask, shape)[:, :1]


class StepBar:
    """ComfyUI's progress bar, with a preview where the user has switched previews on."""

    def __init__(self, patcher: Any, steps: int) -> None:
        import latent_preview
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(steps)
        self._size = latent_preview.MAX_PREVIEW_RESOLUTION
        previewer = latent_preview.get_previewer(
            patcher.load_device, patcher.get_model_object("latent_format")
        )
        self.shows_previews = previewer is not None

    def advance(self, step: int, steps: int, preview: Any = None) -> None:
        """`step` of `steps` are done; `preview` is uint8 [B,H,W,3] or None."""
        image = None
        if preview is not None:
            from PIL import Image

            image = ("JPEG", Image.fromarray(preview[0]), self._size)
        self._bar.update_absolute(step, steps, image)
