"""Weights in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ditmesh.models.info import Catalogue, ModelInfo, scan
from ditmesh.models.loading import reload
from ditmesh.models.patches import PatchSet, affected, check, merge

Loader = Callable[[ModelInfo], nn.Module]


class ModelCache:
    """Transformers by name, at most `max_loaded` of them; the least recently used goes first.

    Used from the torch thread, but for `holds` and the read-only properties.
    """

    def __init__(self, folder: Path, loader: Loader, *, max_loaded: int = 1) -> None:
        self.catalogue: Catalogue = scan(folder)
        self._loader = loader
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[str, nn.Module] = OrderedDict()
        self._merged: dict[str, tuple[bytes, tuple[str, ...]]] = {}
        self._loading = ""

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return tuple(self._loaded)

    @property
    def loading(self) -> str:
        """The model whose weights are being read or changed now; empty for none. Any thread."""
        return self._loading

    def holds(self, name: str, patches: PatchSet | None = None) -> bool:
        """Whether `get` would have nothing to do, at this moment. Any thread."""
        wanted = patches.key if patches is not None else b""
        return name in self._loaded and self._merged.get(name, (b"", ()))[0] == wanted

    def get(self, name: str, patches: PatchSet | None = None) -> nn.Module:
        """The transformer with its weights changed by `patches`, loaded if need be.

        Raises UnknownModel or DamagedModel, and InvalidRequest for patches that do not fit.
        """
        info = self.catalogue.get(name)
        if patches is not None:
            check(patches.patches, info)
        self._loading = "" if self.holds(name, patches) else name
        try:
            module = self._unpatched(name, info)
            if not self.holds(name, patches):
                self._change(name, info, module, patches)
        finally:
            self._loading = ""
        return module

    def _change(
        self, name: str, info: ModelInfo, module: nn.Module, patches: PatchSet | None
    ) -> None:
        """Take back the patches that are merged, and merge others."""
        # Until it is whole again the module is nobody's: an error on the way drops it.
        del self._loaded[name]
        _, changed = self._merged.pop(name, (b"", ()))
        reload(module, info, changed)
        if patches is not None:
            merge(module, info, patches.patches)
            self._merged[name] = (patches.key, affected(patches.patches, info))
        self._loaded[name] = module

    def _unpatched(self, name: str, info: ModelInfo) -> nn.Module:
        if name not in self._loaded:
            while len(self._loaded) >= self._max_loaded:
                dropped, _ = self._loaded.popitem(last=False)
                self._merged.pop(dropped, None)
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
