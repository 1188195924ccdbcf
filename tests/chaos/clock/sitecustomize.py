"""Lets a test set the wall clock of running Python processes: loaded by the interpreter itself.

Where DITMESH_CHAOS_CLOCK names a file of one double, `time.time` and `time.time_ns` are off by so
many seconds, from one call to the next. Monotonic clocks stay right, as they do when an
administrator or NTP sets a machine's clock.
"""

import mmap
import os
import struct
import time

_path = os.environ.get("DITMESH_CHAOS_CLOCK")
if _path:
    with open(_path, "rb") as _file:
        _offset = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
    _time, _time_ns = time.time, time.time_ns

    def _off() -> float:
        return struct.unpack("d", _offset[:8])[0]

    time.time = lambda: _time() + _off()
    time.time_ns = lambda: _time_ns() + int(_off() * 1e9)
