"""The nodes, as ComfyUI loads them."""

from __future__ import annotations

from .dispatcher_node import XDiTDispatcher
from .model_node import XDiTRemoteModel
from .pipeline_nodes import XDiTDecode, XDiTEncodePrompt
from .sampler_nodes import XDiTKSampler, XDiTKSamplerAdvanced

NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        XDiTDispatcher,
        XDiTRemoteModel,
        XDiTKSampler,
        XDiTKSamplerAdvanced,
        XDiTEncodePrompt,
        XDiTDecode,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "XDiTDispatcher": "xDiT Dispatcher",
    "XDiTRemoteModel": "xDiT Remote Model",
    "XDiTKSampler": "xDiT KSampler",
    "XDiTKSamplerAdvanced": "xDiT KSampler (Advanced)",
    "XDiTEncodePrompt": "xDiT Encode Prompt",
    "XDiTDecode": "xDiT Decode",
}
