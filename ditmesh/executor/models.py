"""Weights in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ditmesh.models.info import Catalogue, ModelInfo, scan

Loader = Callable[[ModelInfo], nn.Module]


class ModelCache:
    """Transformers by name, at most `max_loaded` of them; the least recently used goes first.

    Used from the torch thread, but for the read-only properties.
    """

    def __init__(self, folder: Path, loader: Loader, *, max_loaded: int = 1) -> None:
        self.catalogue: Catalogue = scan(folder)
        self._loader = loader
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[str, nn.Module] = OrderedDict()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return tuple(self._loaded)

    def get(self, name: str) -> nn.Module:
        """The transformer, loaded if need be. Raises UnknownModel or DamagedModel."""
        if name not in self._loaded:
            info = self.catalogue.get(name)
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._loaded[name] = self._loader(info)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def load(self, name: str) -> float:
        """Load the weights now. Returns the seconds it took, 0 if they were there."""
        if name in self._loaded:
            return 0.0
        started = time.monotonic()
        self.get(name)
        return time.monotonic() - started
