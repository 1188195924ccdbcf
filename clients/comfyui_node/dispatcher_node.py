"""XDiTDispatcher: which cluster, and on what terms."""

from __future__ import annotations

import logging
from typing import Any

from . import comfy_api, inputs
from .dispatcher import (
    DEFAULT_ADDRESS,
    FALLBACKS,
    TOKEN_VARIABLE,
    Dispatcher,
)

_LOG = logging.getLogger("ditmesh")


class XDiTDispatcher:
    """A cluster for the other nodes, and a list of what it has."""

    CATEGORY = inputs.CATEGORY
    RETURN_TYPES = (inputs.DISPATCHER_TYPE, "STRING")
    RETURN_NAMES = ("xdit_dispatcher", "cluster")
    OUTPUT_TOOLTIPS = ("For the other xDiT nodes.", "What the cluster has, as text.")
    FUNCTION = "dispatch"
    DESCRIPTION = "Connects the other xDiT nodes to a ditmesh cluster, and shows what it has."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The cluster's address first; all that most people need."""
        return {
            "required": {
                "address": (
                    "STRING",
                    {
                        "default": DEFAULT_ADDRESS,
                        "tooltip": "host:port of the cluster's coordinator.",
                    },
                ),
                "fallback": (
                    list(FALLBACKS),
                    {
                        "tooltip": "Who may sample when the GPU group cannot. allow: the "
                        "coordinator's own sampler, else ComfyUI. cluster only: the coordinator's "
                        "sampler, else an error. group or ComfyUI: not the coordinator's. "
                        "group only: an error."
                    },
                ),
                "time_limit": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 86400.0,
                        "step": 1.0,
                        "tooltip": "Seconds that the cluster may take for one picture, waiting "
                        "included. 0: any.",
                    },
                ),
            },
            "optional": {
                "reconnect_time": (
                    "FLOAT",
                    {
                        "default": 10.0,
                        "min": 0.0,
                        "max": 600.0,
                        "step": 1.0,
                        "advanced": True,
                        "tooltip": "Seconds for which a broken connection is taken up again.",
                    },
                ),
                "tls": (
                    "BOOLEAN",
                    {"default": False, "advanced": True, "tooltip": "Encrypt the connection."},
                ),
                "ca_file": _file("who may sign the cluster's certificate. Empty: the system's."),
                "certificate_file": _file("this machine's own certificate. Empty: none."),
                "key_file": _file("the key of this machine's certificate."),
                "token_variable": (
                    "STRING",
                    {
                        "default": TOKEN_VARIABLE,
                        "advanced": True,
                        "tooltip": "Environment variable of the ComfyUI process that holds the "
                        "token. The token itself never goes into a workflow.",
                    },
                ),
            },
            "hidden": inputs.NODE_ID,
        }

    def dispatch(
        self,
        address: str,
        fallback: str,
        time_limit: float,
        reconnect_time: float = 10.0,
        tls: bool = False,
        ca_file: str = "",
        certificate_file: str = "",
        key_file: str = "",
        token_variable: str = TOKEN_VARIABLE,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """The dispatcher, and the cluster in words. A cluster that is down is no error here."""
        dispatcher = Dispatcher(
            address=address.strip(),
            tls=tls,
            ca_file=ca_file.strip(),
            certificate_file=certificate_file.strip(),
            key_file=key_file.strip(),
            token_variable=token_variable.strip(),
            timeout_s=time_limit,
            reconnect_s=reconnect_time,
            fallback=fallback,
        )
        text = describe(dispatcher)
        comfy_api.show_text(unique_id, text)
        return {"ui": {"xdit": [{"cluster": text}]}, "result": (dispatcher, text)}


def describe(dispatcher: Dispatcher) -> str:
    """What the cluster has, or why it cannot be asked."""
    from ditmesh.errors import DitmeshError

    from .cluster_text import cluster_text

    try:
        snapshot = dispatcher.cluster()
    except DitmeshError as error:
        _LOG.warning("ditmesh: no cluster at %s: %s", dispatcher.address, error)
        return f"no cluster at {dispatcher.address}: {error}"
    return cluster_text(dispatcher.address, snapshot)


def _file(what: str) -> tuple[str, dict[str, Any]]:
    return ("STRING", {"default": "", "advanced": True, "tooltip": f"PEM file: {what}"})
