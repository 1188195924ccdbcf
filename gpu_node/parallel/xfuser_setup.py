"""Importing xfuser so that it runs on the device at hand, a CPU without CUDA included.

Every adjustment is numbered and says why it is there; drop it when xfuser no longer needs it.
Written against xfuser 0.7.0 and yunchang 0.6.4.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ditmesh.errors import InternalError

_prepared: str | None = None


def prepare(device_type: str) -> None:
    """Import all that a rank on `device_type` (`cpu` or `cuda`) needs, once per process.

    For the CPU, call it in the parent before forking ranks: it starts no thread, makes no gRPC
    object and touches no GPU, and hides the GPUs from this process and its children. CUDA cannot
    be forked; each spawned rank calls it for itself.

    Raises:
        InternalError: it was called before for another device.
    """
    global _prepared
    if _prepared == device_type:
        return
    if _prepared is not None:
        raise InternalError(f"prepared for {_prepared}, cannot become {device_type}")
    if device_type == "cpu":
        # xfuser asks whether CUDA is there, not whether it is wanted, and then opens the device.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device_type == "cuda":
        # A failed collective must raise here, where a group can be formed anew, and not end the
        # process from NCCL's watchdog. Timeouts are kept by `runtime` instead.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    else:
        raise InternalError(f"no ranks on {device_type!r}, only cpu and cuda")
    with _quiet_import():
        if "xfuser" not in sys.modules:
            _import_xfuser()
        _share_yunchang_groups()
        for module in ("transformer", "group"):
            importlib.import_module(f"gpu_node.parallel.{module}")
    _prepared = device_type


def require_prepared() -> None:
    """Raise InternalError unless `prepare` has run in this process or the one it forked from."""
    if _prepared is None:
        raise InternalError("gpu_node.parallel.runtime.prepare() has not been called")


def _import_xfuser() -> None:
    """Import xfuser by way of its `envs`, which must be adjusted before its `__init__` runs."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.loader is None:
        raise InternalError("xfuser is not installed; install ditmesh[node]")
    package = importlib.util.module_from_spec(spec)
    sys.modules["xfuser"] = package
    try:
        _adjust_envs(importlib.import_module("xfuser.envs"))
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules["xfuser"]
        raise


def _adjust_envs(envs: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        # 1. A CUDA build of torch without a device, or with it hidden, is a CPU: xfuser looks at
        #    the build (torch.version.cuda) and would call CUDA.
        envs._is_cuda = lambda: False
        # 2. It raises where there is no accelerator, and is read while xfuser is imported.
        envs.get_device_version = lambda: None


def _share_yunchang_groups() -> None:
    """3. Without CUDA, xfuser's attention has None in place of yunchang's groups."""
    usp: Any = importlib.import_module("xfuser.model_executor.layers.usp")
    usp.PROCESS_GROUP = importlib.import_module("yunchang.globals").PROCESS_GROUP


@contextmanager
def _quiet_import() -> Iterator[None]:
    """4. Third parties deprecate and advise while they are imported; none of it is our users'.

    xfuser also writes its log to stdout at debug level; it is left to the process's own handlers.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        chatty = logging.getLogger("xfuser")
        chatty.handlers.clear()
        chatty.propagate = True
        chatty.setLevel(logging.WARNING)
