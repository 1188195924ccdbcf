"""The device of this process and its memory."""

from __future__ import annotations

from pathlib import Path

import torch

_PAGES = Path("/proc/self/statm")
_MEMINFO = Path("/proc/meminfo")


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(total, used by this process) in bytes; (0, 0) where the system does not tell."""
    if device.type == "cuda":
        total: int = torch.cuda.mem_get_info(device)[1]
        return total, torch.cuda.memory_reserved(device)
    try:
        resident = int(_PAGES.read_text().split()[1]) * 4096
        total_kib = int(_MEMINFO.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0, 0
    return total_kib * 1024, resident


def torch_dtype(name: str) -> torch.dtype:
    """fp32, bf16 or fp16 by its short name. Raises KeyError for another."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
