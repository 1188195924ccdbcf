"""What can run on a cluster, and how: pure questions about a request, each answered with the
reason why not, in words that end "because ..."; an empty answer means yes.

Three ways to sample, best first. A whole job: the cluster runs the sampler. Step by step: ComfyUI
runs the sampler, the cluster the transformer. ComfyUI itself. What is asked about are ComfyUI's
own objects, by the attributes they have had in every supported version, so nothing here imports
ComfyUI or torch. The questions allow what is known and refuse the rest: a patch that nobody has
heard of must never be lost in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .request import Conditioning, SamplingRequest

WHOLE_JOB_SAMPLERS = frozenset(
    (
        *("euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2m"),
        *("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddim", "uni_pc", "uni_pc_bh2", "lms"),
        *("deis", "ipndm", "res_multistep", "lcm", "er_sde"),
    )
)
"""Samplers that the cluster has."""

DEVICE_NOISE_SAMPLERS = frozenset(("euler_ancestral", "dpm_2_ancestral", "lcm", "er_sde"))
"""Of these, the ones whose noise ComfyUI draws from the generator of its own device."""

_WHOLE_JOB_CONDITIONING = frozenset(("pooled_output", "guidance"))
_LOCAL_CONDITIONING = {
    "control": "a ControlNet",
    "gligen": "GLIGEN",
    "hooks": "hooks that change weights while sampling",
    "reference_latents": "reference images",
    "attention_mask": "an attention mask",
}
_PATCHES = ("patches", "patches_replace")


def why_not_remote(request: SamplingRequest) -> str:
    """Why no cluster can compute this request's transformer calls."""
    return (
        why_transformer_not_remote(request.model)
        or _local_conditioning(request.positive)
        or _local_conditioning(request.negative)
    )


def why_transformer_not_remote(patcher: Any) -> str:
    """Why the transformer of a MODEL, patched as it is, cannot be another machine's."""
    options = patcher.model_options.get("transformer_options", {})
    for name in _PATCHES:
        if found := _names(options.get(name)):
            return f"the MODEL has patches inside its transformer ({', '.join(found)})"
    if _holds_any(getattr(patcher, "hook_patches", None)) or getattr(patcher, "forced_hooks", None):
        return "the MODEL has hooks that change weights while sampling"
    if _holds_any(getattr(patcher, "injections", None)):
        return "a node injects code into the MODEL"
    if _holds_any(getattr(patcher, "weight_wrapper_patches", None)):
        return "a node wraps weights of the MODEL"
    inner = [name for name in patcher.object_patches if name.startswith("diffusion_model")]
    if inner:
        return f"a node replaces parts of the transformer ({', '.join(sorted(inner))})"
    return ""


def why_not_whole(
    request: SamplingRequest, latent: Any, *, size_multiple: int, samples_on_cpu: bool
) -> str:
    """Why the cluster cannot run this request's sampler as well.

    `latent` is what is sampled, [B,C,H,W] with the model's channels; sides of whole jobs are
    multiples of `size_multiple`. `samples_on_cpu`: where ComfyUI itself would sample.
    """
    sampler = request.sampler_name
    if sampler not in WHOLE_JOB_SAMPLERS:
        return f"the cluster has no sampler {sampler}"
    if sampler in DEVICE_NOISE_SAMPLERS and not samples_on_cpu:
        return f"{sampler} draws its noise from this machine's GPU"
    return (
        _latent_refusal(latent, size_multiple)
        or _hook_refusal(request.model)
        or _shift_refusal(request.model)
        or _whole_conditioning(request.positive, latent.shape[0], "positive")
        or (
            # An area of the negative conditioning splits the positive one even where it is unused.
            _plain_conditioning(request.negative, "negative")
            if math.isclose(request.cfg, 1.0)
            else _whole_conditioning(request.negative, latent.shape[0], "negative")
        )
    )


def flow_shift(model_sampling: Any) -> float | None:
    """The time shift of a rectified flow, as the cluster takes it; None for another process.

    ComfyUI knows two spellings of one curve: Flux's exp(shift) is the factor of the other.
    """
    classes = {cls.__name__ for cls in type(model_sampling).__mro__}
    if "CONST" not in classes:
        return None
    if "ModelSamplingFlux" in classes:
        return float(model_sampling.shift)
    if "ModelSamplingDiscreteFlow" in classes and model_sampling.multiplier == 1:
        return math.log(model_sampling.shift) if model_sampling.shift > 0 else None
    return None


def _latent_refusal(latent: Any, size_multiple: int) -> str:
    if getattr(latent, "is_nested", False) or latent.ndim != 4:
        return "the latent is not one batch of pictures"
    if str(latent.dtype) != "torch.float32":
        return f"the latent is {latent.dtype}"
    if latent.shape[2] % size_multiple or latent.shape[3] % size_multiple:
        rows, columns = latent.shape[2], latent.shape[3]
        return f"a latent of {columns}x{rows} is padded, which the cluster leaves to ComfyUI"
    return ""


def _hook_refusal(patcher: Any) -> str:
    """What ComfyUI calls while it samples, and a cluster cannot."""
    options = patcher.model_options
    found = [name for name in options if name != "transformer_options" and options[name]]
    if found:
        return f"the MODEL has functions that run at every step ({', '.join(sorted(found))})"
    if _holds_any(options.get("transformer_options")):
        return "the MODEL has options for its transformer"
    for kind in ("wrappers", "callbacks"):
        if _holds_any(getattr(patcher, kind, None)):
            return f"the MODEL has {kind} that run while sampling"
    others = [name for name in patcher.object_patches if name != "model_sampling"]
    return f"a node replaces {', '.join(sorted(others))} of the MODEL" if others else ""


def _shift_refusal(patcher: Any) -> str:
    if flow_shift(patcher.get_model_object("model_sampling")) is None:
        return "a node gives the MODEL another kind of noise schedule"
    return ""


def _whole_conditioning(entries: Conditioning, batch: int, name: str) -> str:
    if len(entries) != 1:
        return f"the {name} conditioning has {len(entries)} parts"
    if refusal := _plain_conditioning(entries, name):
        return refusal
    embedding, options = entries[0]
    if "guidance" in options and options["guidance"] is None:
        return f"the {name} conditioning switches guidance off"
    tensors = [embedding, options.get("pooled_output")]
    if any(t is None or t.shape[0] not in (1, batch) for t in tensors):
        return f"the {name} conditioning is not one for each picture"
    return ""


def _plain_conditioning(entries: Conditioning, name: str) -> str:
    used = {key for _, options in entries for key, value in options.items() if value is not None}
    unknown = sorted(used - _WHOLE_JOB_CONDITIONING)
    return f"the {name} conditioning uses {', '.join(unknown)}" if unknown else ""


def _local_conditioning(entries: Conditioning) -> str:
    for _, options in entries:
        for key, name in _LOCAL_CONDITIONING.items():
            if options.get(key) is not None:
                return f"the conditioning uses {name}"
    return ""


def _names(patches: Mapping[str, Any] | None) -> list[str]:
    return sorted(name for name, values in (patches or {}).items() if values)


def _holds_any(nested: Any) -> bool:
    """Whether nested dicts and lists hold anything at all."""
    if isinstance(nested, Mapping):
        return any(_holds_any(value) for value in nested.values())
    if isinstance(nested, Iterable) and not isinstance(nested, str):
        return any(True for _ in nested)
    return nested is not None
