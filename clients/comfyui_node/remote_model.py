"""MODELs without weights: one made from what a cluster says of its model, and the twin of an
ordinary MODEL whose transformer is the cluster's.
"""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditmesh.models.flux_checkpoint import FluxConfig

from .dispatcher import Dispatcher
from .fingerprint import single_file_shapes

if TYPE_CHECKING:
    from .transformer import RemoteTransformer

NOMINAL_BYTES = 1
"""What ComfyUI's memory manager is told that such a MODEL weighs. 0 would mean "measure it"."""

_TWINS: weakref.WeakKeyDictionary[Any, dict[tuple[Dispatcher, str], _Twin]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class _Twin:
    """A weightless model, and what its clones share: the originals of what is replaced in it."""

    base: Any
    object_patches_backup: dict[str, Any] = field(default_factory=dict)


def remote_transformer(patcher: Any) -> RemoteTransformer | None:
    """The cluster's transformer behind a MODEL, or None for a MODEL with weights."""
    # By name: to import the class is to import torch and gRPC.
    module = getattr(patcher.model, "diffusion_model", None)
    return module if type(module).__name__ == "RemoteTransformer" else None


def make_remote_model(dispatcher: Dispatcher, card: Any) -> Any:
    """A MODEL for the cluster's model `card` (a `ModelCard`), without any weights.

    Raises:
        ValueError: a family that this pack cannot build a MODEL for.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models as supported

    from .transformer import RemoteTransformer

    if card.family != "flux":
        raise ValueError(
            f"The cluster's model {card.name!r} is of the family {card.family!r}; this version "
            "of the nodes knows flux. Update the node pack."
        )
    # ComfyUI takes a Flux without embedded guidance for schnell: another spelling of the schedule.
    distilled = bool(card.dimensions["guidance_embeds"])
    config = (supported.Flux if distilled else supported.FluxSchnell)(_unet_config(card))
    if card.default_shift is not None:
        config.sampling_settings["shift"] = (
            card.default_shift if distilled else math.exp(card.default_shift)
        )
    config.set_inference_dtype(*_full_precision())
    base = config.get_model({}, "", device="cpu")
    base.latent_format = _latent_format(base.latent_format, card)
    base.model_config.latent_format = base.latent_format
    weights = single_file_shapes(_flux_config(card))
    _attach(base, RemoteTransformer(dispatcher, card.name, weights, card.fingerprint))
    return comfy.model_patcher.ModelPatcher(
        base,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
        size=NOMINAL_BYTES,
    )


def make_twin(patcher: Any, dispatcher: Dispatcher, model: str) -> Any:
    """A MODEL like this one in all but its transformer, which is the cluster's `model`.

    Everything that nodes put on the MODEL stays: sampling, guidance, wrappers, LoRA.
    """
    twins = _TWINS.setdefault(patcher.model, {})
    key = (dispatcher, model)
    if key not in twins:
        twins[key] = _Twin(_weightless(patcher, dispatcher, model))
    clone = patcher.clone()
    clone.model, clone.size, clone.backup = twins[key].base, NOMINAL_BYTES, {}
    clone.object_patches_backup = twins[key].object_patches_backup
    return clone


def _weightless(patcher: Any, dispatcher: Dispatcher, model: str) -> Any:
    from .transformer import RemoteTransformer

    original = patcher.model
    names = {
        name.removeprefix("diffusion_model."): tuple(value.shape)
        for name, value in original.state_dict().items()
        if name.startswith("diffusion_model.")
    }
    base = copy.copy(original)
    for registry in ("_modules", "_parameters", "_buffers"):
        setattr(base, registry, dict(getattr(original, registry)))
    # What another clone has replaced for the moment is not part of the model.
    for name, value in patcher.object_patches_backup.items():
        if "." not in name:
            setattr(base, name, value)
    base.current_patcher = None
    base.current_weight_patches_uuid = None
    base.model_loaded_weight_memory = 0
    base.model_lowvram, base.lowvram_patch_counter = False, 0
    transformer = RemoteTransformer(dispatcher, model, names)
    _attach(base, transformer)
    return base


def _attach(base: Any, transformer: RemoteTransformer) -> None:
    base.diffusion_model = transformer
    transformer.belongs_to(base)
    base.manual_cast_dtype = None
    base.memory_usage_factor = 0.0  # activations live on the cluster


def _full_precision() -> tuple[Any, None]:
    import torch

    return torch.float32, None


def _unet_config(card: Any) -> dict[str, Any]:
    """What ComfyUI wants to know of a Flux that it need not build."""
    return {
        "image_model": "flux",
        "guidance_embed": bool(card.dimensions["guidance_embeds"]),
        "in_channels": card.latent_channels,
        "out_channels": card.latent_channels,
        "patch_size": 2,
        "depth": card.dimensions["num_layers"],
        "depth_single_blocks": card.dimensions["num_single_layers"],
        "hidden_size": card.num_heads * card.dimensions["head_dim"],
        "num_heads": card.num_heads,
        "context_in_dim": card.text_dim,
        "vec_in_dim": card.pooled_dim,
        "disable_unet_model_creation": True,
    }


def _flux_config(card: Any) -> FluxConfig:
    return FluxConfig(
        latent_channels=card.latent_channels,
        num_layers=card.dimensions["num_layers"],
        num_single_layers=card.dimensions["num_single_layers"],
        num_heads=card.num_heads,
        head_dim=card.dimensions["head_dim"],
        text_dim=card.text_dim,
        pooled_dim=card.pooled_dim,
        guidance_embeds=bool(card.dimensions["guidance_embeds"]),
        axes_dims=(),
    )


def _latent_format(stock: Any, card: Any) -> Any:
    """The latent space of the model's own autoencoder, in the shape of ComfyUI's own."""
    own, found = card.latent_format, copy.copy(stock)
    found.latent_channels = own.channels
    if (own.scale, own.shift) != (stock.scale_factor, stock.shift_factor):
        found.taesd_decoder_name = None  # made for Flux's own autoencoder
    found.scale_factor, found.shift_factor = own.scale, own.shift
    if own.rgb_factors:
        found.latent_rgb_factors = [list(row) for row in own.rgb_factors]
        found.latent_rgb_factors_bias = list(own.rgb_bias)
    return found
