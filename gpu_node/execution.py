"""How a rank runs its transformers: chosen by the operator, checked before anything starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

_PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}
"""What brings the kernels that torch does not have."""
_ON_CPU = ("auto", "flash", "math")
_COMPILERS = ("cc", "gcc", "clang")


@dataclass(frozen=True)
class Execution:
    """The options of `ditmesh.options.add_execution` as a value."""

    dtype: str = "bf16"
    """In what weights are kept and computed: fp32, bf16 or fp16."""
    fp8_weights: bool = False
    """Keep the weights of blocks in eight bits; they are computed in `dtype`."""
    attention: str = "auto"
    """The attention kernel, see `gpu_node.parallel.attention`."""
    compile: bool = False
    """Compile the blocks when a model is loaded."""

    def problem(self, device_type: str) -> str:
        """Why this cannot run on `cpu` or `cuda`, in words for the user; empty if it can.

        Needs no device: what only a GPU can tell is found when the rank starts.
        """
        if self.fp8_weights and self.dtype == "fp16":
            return "--fp8-weights: sums would overflow fp16; use --dtype bf16"
        return _attention_problem(self.attention, device_type) or self._compile_problem()

    def _compile_problem(self) -> str:
        wanted = [os.environ["CC"]] if "CC" in os.environ else _COMPILERS
        if not self.compile or any(map(shutil.which, wanted)):
            return ""
        return (
            f"--compile: it needs a C compiler, and there is no {' or '.join(wanted)} on the PATH; "
            "install gcc, or leave --compile out"
        )


def _attention_problem(name: str, device_type: str) -> str:
    if device_type == "cpu" and name not in _ON_CPU:
        return f"--attention {name}: it is for GPUs; on a CPU there are {', '.join(_ON_CPU)}"
    package = _PACKAGES.get(name)
    if package is not None and not _installed(package):
        return f"--attention {name}: the package {package} is not installed"
    return ""


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False  # not even the package that it would be part of
