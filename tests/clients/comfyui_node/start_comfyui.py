"""Start an unmodified ComfyUI on a machine without a GPU: `start_comfyui.py CHECKOUT [args]`.

The torchvision of the package index is built for CUDA. Beside a CPU-only torch its compiled
operators cannot be loaded, and without their schemas it cannot be imported.
"""

from __future__ import annotations

import os
import runpy
import sys


def declare_torchvision_operators() -> None:
    """Declare the operators that torchvision registers fake kernels for at import."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        try:
            library.define(schema)
        except RuntimeError:  # a torchvision whose own operators have loaded
            return
    globals()["_library"] = library  # a library that is collected takes its operators along


if __name__ == "__main__":
    checkout = os.path.abspath(sys.argv.pop(1))
    declare_torchvision_operators()
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv[0] = os.path.join(checkout, "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
