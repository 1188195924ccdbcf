"""A loaded model that evaluates guidance branches: the interface, and one process's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ditmesh.models.family import Conditioning, Family
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.models.registry import family


class Model(Protocol):
    """What a denoising loop needs of a model, however many processes run it."""

    @property
    def family(self) -> Family:
        """The adapter of the model's family."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are and results appear."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In what the transformer computes."""
        ...

    def evaluate(
        self, x_BCHW: Tensor, sigma: Tensor | float, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        """The denoised latent, fp32 [B,C,H,W], for each guidance branch.

        `x_BCHW` is in model space; `sigma` is one for all, or one for each image.
        """
        ...

    def predict(self, x_BCHW: Tensor, sigma: Tensor | float, cond: Conditioning) -> Tensor:
        """The transformer's raw output, [B,C,H,W] in its dtype, for a single branch."""
        ...


class LocalModel:
    """A model on one device of this process."""

    def __init__(self, info: ModelInfo, transformer: nn.Module) -> None:
        self.info = info
        self.family: Family = family(info.family)
        self.transformer = transformer
        weight = next(transformer.parameters())
        self.device = weight.device
        self.dtype = weight.dtype

    @classmethod
    def load(cls, info: ModelInfo, *, device: torch.device | str, dtype: torch.dtype) -> LocalModel:
        """Load the weights of `info`.

        Raises:
            DamagedModel: as `loading.load`.
        """
        return cls(info, load(info, device=device, dtype=dtype))

    @torch.no_grad()
    def evaluate(
        self, x_BCHW: Tensor, sigma: Tensor | float, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        """See `Model.evaluate`. Branches run one after another, each at its own text length."""
        x, sigma_B = place(x_BCHW, sigma, self.device)
        return [
            self.family.denoised(
                x, sigma_B, self.family.forward(self.transformer, x, sigma_B, cond)
            )
            for cond in branches
        ]

    @torch.no_grad()
    def predict(self, x_BCHW: Tensor, sigma: Tensor | float, cond: Conditioning) -> Tensor:
        """See `Model.predict`."""
        x, sigma_B = place(x_BCHW, sigma, self.device)
        return self.family.forward(self.transformer, x, sigma_B, cond)


def place(x_BCHW: Tensor, sigma: Tensor | float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The latent on `device`, and sigma as fp32 [B] beside it."""
    sigma_B = torch.as_tensor(sigma, dtype=torch.float32, device=device).reshape(-1)
    return x_BCHW.to(device), sigma_B.expand(x_BCHW.shape[0])
