"""How this process's allocator treats memory that was freed."""

from __future__ import annotations

import ctypes

_LARGEST_BLOCK = 32 << 20
"""The largest that glibc lets one set: what is larger is mapped and goes back when it is freed."""
KEPT_BYTES = 512 << 20
"""What a process that computes keeps at the heap's end: about what a step has of such blocks."""
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed(nbytes: int = KEPT_BYTES) -> bool:
    """Have this process keep what it frees, and use it again.

    At the heap's end so many bytes are kept; more goes back to the system, unless it is below a
    block that is in use: that is kept however much it is. Blocks larger than `nbytes` are not kept.

    A step of a sampler allocates the same activations as the one before. glibc returns them to the
    system in between, and each page costs a fault when it is next touched, which is slow on a
    virtual machine. Blocks of more than 32 MiB, as most weights are, are not kept either. To be
    called before there are threads: then all allocate from one place, which glibc can keep.

    Returns whether that could be had: another allocator than glibc's has no such settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, min(_LARGEST_BLOCK, nbytes)),
        (_M_TRIM_THRESHOLD, nbytes),
        (_M_ARENA_MAX, 1),
    )
    return all(mallopt(name, value) for name, value in settings)
