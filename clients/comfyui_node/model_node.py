"""XDiTRemoteModel: a MODEL without weights, for every sampler node that there is."""

from __future__ import annotations

from typing import Any

from . import comfy_api, inputs


class XDiTRemoteModel:
    """A MODEL whose transformer is a cluster's."""

    CATEGORY = inputs.CATEGORY
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A MODEL that takes no memory on this machine.",)
    FUNCTION = "load"
    DESCRIPTION = (
        "A MODEL without weights whose transformer runs on a ditmesh cluster. Works with every "
        "sampler node, with guiders, inpainting, LoRA and ModelSampling nodes."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A name; the cluster."""
        return {
            "required": {"model_name": inputs.MODEL_NAME},
            "optional": {"xdit_dispatcher": inputs.DISPATCHER},
            "hidden": inputs.NODE_ID,
        }

    def load(
        self, model_name: str, xdit_dispatcher: Any = None, unique_id: str | None = None
    ) -> dict[str, Any]:
        """The MODEL. Raises a RuntimeError, in words for the user, if there is none."""
        from .choice import choose_model
        from .remote_model import make_remote_model

        dispatcher, card = choose_model(xdit_dispatcher, model_name)
        comfy_api.show_text(unique_id, f"{card.name} on {dispatcher.address}")
        return {"result": (make_remote_model(dispatcher, card),)}
