"""Names, types and tooltips of inputs that several nodes have."""

from __future__ import annotations

from typing import Any

CATEGORY = "sampling/xDiT"
DISPATCHER_TYPE = "XDIT_DISPATCHER"

DISPATCHER = (
    DISPATCHER_TYPE,
    {"tooltip": "Which cluster to use. Left open: the one in DITMESH_ADDRESS, or this machine's."},
)

MODEL_NAME = (
    "STRING",
    {
        "default": "",
        "tooltip": "Name of a model on the cluster, as the dispatcher lists them. "
        "Left empty: the only one there is.",
    },
)

NODE_ID = {"unique_id": "UNIQUE_ID"}


def seed(tooltip: str) -> tuple[str, dict[str, Any]]:
    """A seed as KSampler has it."""
    return (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": 0xFFFFFFFFFFFFFFFF,
            "control_after_generate": True,
            "tooltip": tooltip,
        },
    )
