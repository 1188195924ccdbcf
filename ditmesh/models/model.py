"""A loaded model that evaluates guidance branches: the interface, and one process's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ditmesh.models.family import Conditioning, Family, Inputs, LatentLayout
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.models.registry import family


class Model(ABC):
    """What a denoising loop needs of a model, however many processes run it.

    `evaluate` and `predict` take one latent as it is; a loop gets the layout from `family`, the
    inputs from `inputs` once, and calls `denoised` in each step.
    """

    def __init__(self, info: ModelInfo, transformer: nn.Module) -> None:
        self.info = info
        self.family: Family = family(info.family)
        self.transformer = transformer
        weight = next(transformer.parameters())
        self.device = weight.device
        """Where the weights are and results appear."""
        self.dtype = weight.dtype
        """In what the transformer computes."""

    @abstractmethod
    def outputs(
        self, arranged: Tensor, sigma_B: Tensor, branches: Sequence[Inputs]
    ) -> list[Tensor]:
        """The transformer's raw output for each branch; see `Family.forward`."""

    def inputs(self, layout: LatentLayout, branches: Sequence[Conditioning]) -> list[Inputs]:
        """Guidance branches made ready for steps on latents of a layout. See `Family.inputs`."""
        return [self.family.inputs(self.transformer, layout, cond) for cond in branches]

    def denoised(
        self, arranged: Tensor, sigma: Tensor | float, branches: Sequence[Inputs]
    ) -> list[Tensor]:
        """The denoised latent, fp32 and in the same layout, for each guidance branch.

        The latent is on the model's device and in model space; `sigma` is one for all, or one for
        each image. To be called where torch keeps no gradients.
        """
        sigma_B = self._of_each(sigma, arranged.shape[0])
        outputs = self.outputs(arranged.to(self.dtype), sigma_B, branches)
        return [self.family.denoised(arranged, sigma_B, output) for output in outputs]

    @torch.no_grad()
    def evaluate(
        self, x_BCHW: Tensor, sigma: Tensor | float, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        """As `denoised`, of a latent [B,C,H,W]."""
        layout = self.family.layout(x_BCHW.shape)
        arranged, inputs = layout.arrange(x_BCHW.to(self.device)), self.inputs(layout, branches)
        return [layout.restore(one) for one in self.denoised(arranged, sigma, inputs)]

    @torch.no_grad()
    def predict(self, x_BCHW: Tensor, sigma: Tensor | float, cond: Conditioning) -> Tensor:
        """The transformer's raw output, [B,C,H,W] in its dtype, for a single branch."""
        layout = self.family.layout(x_BCHW.shape)
        x = layout.arrange(x_BCHW.to(self.device, self.dtype))
        inputs = self.inputs(layout, [cond])
        (output,) = self.outputs(x, self._of_each(sigma, len(x)), inputs)
        return layout.restore(output)

    def _of_each(self, sigma: Tensor | float, batch: int) -> Tensor:
        """Sigma for each image, fp32 [B]."""
        return torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(batch)


class LocalModel(Model):
    """A model on one device of this process."""

    @classmethod
    def load(cls, info: ModelInfo, *, device: torch.device | str, dtype: torch.dtype) -> LocalModel:
        """Load the weights of `info`.

        Raises:
            DamagedModel: as `loading.load`.
        """
        return cls(info, load(info, device=device, dtype=dtype))

    def outputs(
        self, arranged: Tensor, sigma_B: Tensor, branches: Sequence[Inputs]
    ) -> list[Tensor]:
        """See `Model.outputs`. Branches run one after another, each at its own text length."""
        return [
            self.family.forward(self.transformer, arranged, sigma_B, inputs) for inputs in branches
        ]
