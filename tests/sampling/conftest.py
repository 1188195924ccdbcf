"""Settings for small tensors on a machine that may be busy with other ranks."""

from __future__ import annotations

import torch
from hypothesis import settings

# On tensors this small, threads only get in each other's way when the cores are busy.
torch.set_num_threads(1)

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
