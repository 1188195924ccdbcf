"""Prompts to conditioning and latents to pictures, on the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ditmesh.errors import DitmeshError

from . import comfy_api
from .choice import choose_model
from .dispatcher import Dispatcher
from .waiting import wait_for

T = TypeVar("T")


class PipelineFailed(RuntimeError):
    """The cluster could not encode or decode; the message says what to do."""


def encode(
    dispatcher: Dispatcher | None, model: str, prompt: str, guidance: float
) -> tuple[list[list[Any]], int]:
    """A CONDITIONING, and how many tokens of the prompt were cut off.

    Raises:
        NoModel: the cluster has no such model with text encoders.
        PipelineFailed: it could not encode the prompt.
    """
    import torch

    dispatcher, card = choose_model(dispatcher, model, with_pipeline=True)
    client = dispatcher.client()
    encoded = _ask(lambda: client.encode_prompt(card.name, prompt), dispatcher, "encode a prompt")
    conditioning = encoded.conditioning
    options: dict[str, Any] = {"guidance": guidance}
    found = {
        name: torch.from_numpy(tensor.numpy().copy()).float()
        for name, tensor in conditioning.wire.items()
    }
    if "pooled" in found:
        options["pooled_output"] = found["pooled"]
    return [[found["text"], options]], encoded.truncated_tokens


def decode(dispatcher: Dispatcher | None, model: str, latent: Any) -> Any:
    """An IMAGE [B,H,W,3] from a latent in ComfyUI's latent space.

    Raises:
        NoModel: the cluster has no such model with an autoencoder.
        PipelineFailed: it could not decode the latent.
    """
    import torch
    from comfy.model_management import intermediate_device

    dispatcher, card = choose_model(dispatcher, model, with_pipeline=True)
    client = dispatcher.client()
    space = card.latent_format
    in_model_space = (latent.float() - space.shift) * space.scale
    pictures = _ask(
        lambda: client.decode(card.name, in_model_space), dispatcher, "decode a picture"
    )
    return torch.from_numpy(pictures).to(intermediate_device())


def _ask(call: Callable[[], T], dispatcher: Dispatcher, what: str) -> T:
    try:
        return wait_for(call, check=comfy_api.raise_if_cancelled, abandon=lambda: None)
    except DitmeshError as error:
        raise PipelineFailed(
            f"The cluster at {dispatcher.address} could not {what}: {error}"
        ) from error
