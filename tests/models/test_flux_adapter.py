"""The Flux adapter: ComfyUI's numbers, diffusers' numbers, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ditmesh.errors import InvalidRequest, InvalidTensor, UnknownModel
from ditmesh.models.family import Conditioning, Family
from ditmesh.models.flux import image_positions, pack, unpack
from ditmesh.models.info import inspect
from ditmesh.models.loading import load
from ditmesh.models.model import LocalModel, Model
from ditmesh.models.registry import FAMILIES, family
from ditmesh.sampling.schedules import scheduled_sigmas
from tests.models.tiny_flux import GOLDEN, SINGLE_FILE


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    """The golden model in fp32."""
    return LocalModel.load(inspect(SINGLE_FILE), device="cpu", dtype=torch.float32)


def conditioning(tokens: int = 5, batch: int = 1, **changes: Any) -> Conditioning:
    generator = torch.Generator().manual_seed(tokens)
    values: dict[str, Any] = {
        "text": torch.randn(batch, tokens, 64, generator=generator),
        "pooled": torch.randn(batch, 32, generator=generator),
    }
    return Conditioning(**{**values, **changes})


def test_forward_is_comfyuis(tiny: LocalModel) -> None:
    """One bare transformer call agrees with ComfyUI's own module to 1e-5."""
    case = load_file(GOLDEN / "flux_forward.safetensors")
    cond = Conditioning(case["context"], case["pooled"], case["guidance"])
    velocity = tiny.predict(case["x"], case["sigma"], cond)
    assert (velocity - case["velocity"]).abs().max() < 1e-5


def test_forward_is_diffusers(tiny: LocalModel) -> None:
    """In fp32 the output is diffusers' own, for lengths that nothing divides."""
    reference = load(
        tiny.info, device="cpu", dtype=torch.float32, transformer_class=FluxTransformer2DModel
    )
    x = torch.randn(2, 16, 18, 22, generator=torch.Generator().manual_seed(0))
    cond = conditioning(13, batch=2)
    sigma = torch.tensor([0.9, 0.1])
    with torch.no_grad():
        (expected,) = reference(
            hidden_states=pack(x),
            encoder_hidden_states=cond.text,
            pooled_projections=cond.pooled,
            timestep=sigma,
            img_ids=image_positions(18, 22, "cpu"),
            txt_ids=torch.zeros(13, 3),
            guidance=torch.full((2,), 3.5),
            return_dict=False,
        )
    velocity = tiny.predict(x, sigma, cond)
    assert torch.equal(velocity, unpack(expected, 16, 18, 22))


def test_bf16_tells_close_timesteps_apart() -> None:
    """Sigmas that round to one bf16 number still give different outputs: time stays in fp32."""
    model = LocalModel.load(inspect(SINGLE_FILE), device="cpu", dtype=torch.bfloat16)
    close = (0.7342, 0.7350)
    assert len({float(torch.tensor(sigma).bfloat16()) for sigma in close}) == 1
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (model.predict(x, sigma, conditioning()) for sigma in close)
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)


def test_denoised_is_x_minus_sigma_velocity(tiny: LocalModel) -> None:
    """`evaluate` gives the clean latent in fp32, for one sigma and for one an image."""
    x = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    branches = [conditioning(5), conditioning(9)]
    sigma = torch.tensor([0.25, 0.5])
    for denoised, cond in zip(tiny.evaluate(x, sigma, branches), branches, strict=True):
        velocity = tiny.predict(x, sigma, cond)
        assert torch.equal(denoised, x - sigma.view(2, 1, 1, 1) * velocity)
        assert denoised.dtype == torch.float32


def test_one_conditioning_serves_a_batch(tiny: LocalModel) -> None:
    """A batch of one is expanded: each image gets what it would get with a copy of its own."""
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = conditioning(5)
    assert cond.pooled is not None
    copied = Conditioning(cond.text.repeat(2, 1, 1), cond.pooled.repeat(2, 1))
    assert torch.allclose(tiny.predict(x, 0.5, cond), tiny.predict(x, 0.5, copied), atol=1e-6)


def test_defaults_for_pooled_and_guidance(tiny: LocalModel) -> None:
    """No pooled embedding means zeros, no guidance means 3.5, as in ComfyUI."""
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    bare = conditioning(5, pooled=None)
    full = conditioning(5, pooled=torch.zeros(1, 32), guidance=torch.tensor([3.5, 3.5]))
    other = conditioning(5, pooled=torch.zeros(1, 32), guidance=1.0)
    assert torch.equal(tiny.predict(x, 0.5, bare), tiny.predict(x, 0.5, full))
    assert not torch.equal(tiny.predict(x, 0.5, bare), tiny.predict(x, 0.5, other))


def test_a_model_without_guidance_embedding(tmp_path: Path) -> None:
    """Guidance is left out for a model that has no use for it (Flux schnell)."""
    config = {
        **{"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 64, "pooled_projection_dim": 32},
        **{"guidance_embeds": False, "axes_dims_rope": (4, 6, 6)},
    }
    FluxTransformer2DModel(**config).save_pretrained(tmp_path)
    info = inspect(tmp_path)
    assert not info.guidance_embeds
    model = LocalModel.load(info, device="cpu", dtype=torch.float32)
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with_guidance = model.predict(x, 0.5, conditioning(5, guidance=7.0))
    assert torch.equal(with_guidance, model.predict(x, 0.5, conditioning(5)))


@pytest.mark.parametrize(
    ("shape", "changes", "field"),
    [
        ((1, 4, 8, 8), {}, "x"),
        ((1, 16, 7, 8), {}, "x"),
        ((1, 16, 0, 8), {}, "x"),
        ((16, 8, 8), {}, "x"),
        ((2, 16, 8, 8), {"text": torch.zeros(3, 5, 64)}, "text"),
        ((1, 16, 8, 8), {"text": torch.zeros(5, 64)}, "text"),
        ((1, 16, 8, 8), {"pooled": torch.zeros(32)}, "pooled"),
        ((1, 16, 8, 8), {"guidance": torch.zeros(3)}, "guidance"),
    ],
)
def test_shapes_that_disagree(
    tiny: LocalModel, shape: tuple[int, ...], changes: dict[str, Any], field: str
) -> None:
    """Each wrong shape is refused under its own field's name."""
    with pytest.raises(InvalidTensor) as caught:
        tiny.predict(torch.zeros(shape), 0.5, conditioning(5, **changes))
    assert caught.value.field == field


def test_extra_tensors_are_refused(tiny: LocalModel) -> None:
    """A tensor that Flux does not know is named, not silently dropped."""
    cond = conditioning(5, extra={"attention_mask": torch.ones(1)})
    with pytest.raises(InvalidRequest, match="attention_mask"):
        tiny.predict(torch.zeros(1, 16, 4, 4), 0.5, cond)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), channels=st.integers(1, 4))
def test_pack_and_unpack(rows: int, columns: int, channels: int) -> None:
    """Packing loses nothing, and a token holds the patch that its position says."""
    height, width = 2 * rows, 2 * columns
    latent = torch.arange(channels * height * width).reshape(1, channels, height, width)
    tokens = pack(latent)
    assert torch.equal(unpack(tokens, channels, height, width), latent)
    for position, token in zip(image_positions(height, width, "cpu"), tokens[0], strict=True):
        row, column = 2 * int(position[1]), 2 * int(position[2])
        patch = latent[0, :, row : row + 2, column : column + 2]
        assert torch.equal(token, patch.reshape(-1))


def test_inputs_are_cast_once() -> None:
    """Embeddings come in the transformer's dtype, guidance is a number that no dtype has rounded,
    and a batch of one serves all images.
    """
    model = LocalModel.load(inspect(SINGLE_FILE), device="cpu", dtype=torch.bfloat16)
    cond = conditioning(5, guidance=torch.tensor([3.3]))
    (inputs,) = model.inputs(model.family.layout((2, 16, 4, 6)), [cond])
    text, pooled = inputs["encoder_hidden_states"], inputs["pooled_projections"]
    assert text is not None
    assert pooled is not None
    assert (text.shape, text.dtype) == ((2, 5, 64), torch.bfloat16)
    assert (pooled.shape, pooled.dtype) == ((2, 32), torch.bfloat16)
    guidance = inputs["guidance"]
    assert guidance is not None
    assert torch.equal(guidance, torch.tensor([3.3, 3.3]))


def test_steps_in_the_layout_give_the_bits_of_a_latent(tiny: LocalModel) -> None:
    """What a loop keeps arranged from step to step is what `evaluate` makes of the latent itself,
    to the bit, branch for branch.
    """
    x = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    branches = [conditioning(5), conditioning(9)]
    layout = tiny.family.layout(x.shape)
    inputs = tiny.inputs(layout, branches)
    arranged, latent = layout.arrange(x), x
    for sigma in (0.9, 0.4):
        pairs = zip(
            tiny.denoised(arranged, sigma, inputs),
            tiny.evaluate(latent, sigma, branches),
            strict=True,
        )
        for inside, outside in pairs:
            assert torch.equal(layout.restore(inside), outside)
            arranged, latent = arranged.lerp(inside, 0.3), latent.lerp(outside, 0.3)


def test_without_a_shift_the_schedule_is_schnells() -> None:
    """ComfyUI has 1000 levels for schnell and 10000 for Flux.1-dev, and the model sees the level
    itself in both.
    """
    dev, schnell = family("flux").process(), family("flux").process(0.0)
    lowest = [scheduled_sigmas(process, "karras", 4)[-2].item() for process in (dev, schnell)]
    assert lowest == pytest.approx([math.exp(1.15) / (math.exp(1.15) + 9999), 0.001], rel=1e-4)
    level = torch.tensor(0.3)
    assert schnell.timestep(level).item() == dev.timestep(level).item() == level.item()
    assert schnell.sigma(level).item() == level.item()


def test_registry_and_protocols(tiny: LocalModel) -> None:
    """Families are found by name, an unknown one is refused, and both protocols are met."""
    model: Model = tiny
    adapter: Family = family("flux")
    assert model.family is adapter
    assert set(FAMILIES) == {"flux"}
    with pytest.raises(UnknownModel, match="flux"):
        family("unknown")
