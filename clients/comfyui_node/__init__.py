"""ComfyUI nodes that sample on a ditmesh cluster.

Loading this module costs milliseconds: no node imports torch, gRPC or ComfyUI before it runs.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
