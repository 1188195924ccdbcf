"""MODELs without weights: one made from what a cluster says of its model, and the twin of an
ordinary MODEL whose transformer is the cluster's.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    dimensions = getattr(card, "dimensions", None) or {}
    shift = getattr(card, "default_shift", None)
    guided = bool(dimensions.get("guidance_embeds", 1))
    kind = supported.Flux if guided or shift is not None else supported.FluxSchnell
    config = kind(_unet_config(card, dimensions))
    if shift is not None:
        config.sampling_settings["shift"] = shift
    config.set_inference_dtype(*_full_precision())
    base = config.get_model({}, "", device="cpu")
    base.latent_format = _latent_format(base.latent_format, card)
    base.model_config.latent_format = base.latent_format
    weights = single_file_shapes(_flux_config(card, dimensions)) if dimensions else {}
    _attach(base, RemoteTransformer(dispatcher, card.name, weights))
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


def _unet_config(card: Any, dimensions: Mapping[str, int]) -> dict[str, Any]:
    """What ComfyUI wants to know of a Flux that it need not build."""
    return {
        "image_model": "flux",
        "guidance_embed": bool(dimensions.get("guidance_embeds", 1)),
        "in_channels": card.latent_channels,
        "out_channels": card.latent_channels,
        "patch_size": 2,
        "depth": dimensions.get("num_layers", 0),
        "depth_single_blocks": dimensions.get("num_single_layers", 0),
        "hidden_size": card.num_heads * dimensions.get("head_dim", 0),
        "num_heads": card.num_heads,
        "context_in_dim": card.text_dim,
        "vec_in_dim": card.pooled_dim,
        "disable_unet_model_creation": True,
    }


def _flux_config(card: Any, dimensions: Mapping[str, int]) -> Any:
    from ditmesh.models.flux_checkpoint import FluxConfig

    return FluxConfig(
        latent_channels=card.latent_channels,
        num_layers=dimensions["num_layers"],
        num_single_layers=dimensions["num_single_layers"],
        num_heads=card.num_heads,
        head_dim=dimensions["head_dim"],
        text_dim=card.text_dim,
        pooled_dim=card.pooled_dim,
        guidance_embeds=bool(dimensions["guidance_embeds"]),
        axes_dims=(),
    )


def _latent_format(stock: Any, card: Any) -> Any:
    """The latent space of the model's own autoencoder, where the cluster tells it."""
    found = copy.copy(stock)
    found.latent_channels = card.latent_channels
    scale = getattr(card, "latent_scale", 0.0)
    if scale and (scale, card.latent_shift) != (stock.scale_factor, stock.shift_factor):
        found.scale_factor, found.shift_factor = scale, card.latent_shift
        found.taesd_decoder_name = None  # made for Flux's own autoencoder
    factors = list(getattr(card, "preview_factors", ()))
    if factors:
        rows = [factors[i : i + 3] for i in range(0, len(factors), 3)]
        found.latent_rgb_factors, found.latent_rgb_factors_bias = rows, list(card.preview_bias)
    return found
