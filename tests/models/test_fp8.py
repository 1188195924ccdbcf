"""Weights in eight bits: what is lost, what is not, and how patches come through it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.flux_shaped import FLUX_DEV
from ditmesh.models import fp8
from ditmesh.models import patches as wp
from ditmesh.models.family import Conditioning
from ditmesh.models.fp8 import Fp8Linear
from ditmesh.models.info import ModelInfo, inspect
from ditmesh.models.loading import load, reload
from ditmesh.models.memory import memory_bytes, weights_bytes
from ditmesh.models.model import LocalModel
from tests.models.tiny_flux import SINGLE_FILE

PORTRAITS = Path(__file__).parents[2] / "models" / "pixel-portraits"
QKV = "double_blocks.0.img_attn.qkv.weight"
TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return inspect(SINGLE_FILE)


def _eight_bits(info: ModelInfo, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return load(info, device="cpu", dtype=dtype, fp8_weights=True)


def _stored(value: Tensor, *, dither: bool = False) -> Tensor:
    """What is left of a weight once it has been in eight bits."""
    layer = Fp8Linear(*value.shape, bias=False, device="meta", dtype=torch.bfloat16)
    layer.store(value, dither=dither)
    return layer.value()


def _output(module: nn.Module, info: ModelInfo) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, info.latent_channels, 16, 16, generator=generator)
    text = torch.randn(1, 24, info.text_dim, generator=generator)
    cond = Conditioning(text, torch.randn(1, info.pooled_dim, generator=generator))
    return LocalModel(info, module).predict(x, 0.7, cond).float()


def test_a_weight_loses_a_sixteenth_at_most_whatever_its_rows_size() -> None:
    """From 1e-30 to 1e30, as far as a row's largest value is 10,000 times larger at most."""
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(61, 96, generator=generator).add(1e-4).mul(448 / 1.0001)
    value *= torch.logspace(-30, 30, 61).unsqueeze(1)
    value[:, ::2] *= -1
    assert ((_stored(value) - value).abs() <= value.abs() / 16).all()
    assert torch.equal(_stored(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_what_is_not_finite_stays_so() -> None:
    """A broken weight is not made harmless: the result of a job says so."""
    broken = torch.tensor([[1.0, torch.inf], [torch.nan, 1.0], [2.0, 3.0]])
    assert _stored(broken).isfinite().all(dim=1).tolist() == [False, False, True]


def test_a_file_in_eight_bits_is_kept_to_the_bit(tmp_path: Path) -> None:
    """Every value that e4m3 has, subnormal ones included, comes back as it is."""
    every = torch.arange(256, dtype=torch.uint8).view(fp8.STORAGE).float()
    every = every[every.isfinite()]
    for rows in (every.reshape(2, -1), every[:56].reshape(1, -1), every.reshape(-1, 1)):
        assert torch.equal(_stored(rows), rows)
    stored = {name: tensor.to(fp8.STORAGE) for name, tensor in load_file(SINGLE_FILE).items()}
    save_file(stored, tmp_path / "fp8.safetensors")
    info = inspect(tmp_path / "fp8.safetensors")
    kept, wide = _eight_bits(info), load(info, device="cpu", dtype=torch.bfloat16)
    for name, module in kept.named_modules():
        if isinstance(module, Fp8Linear):
            assert torch.equal(module.value(), wide.get_parameter(f"{name}.weight").float()), name


def test_memory_is_half_and_counted_to_the_byte(info: ModelInfo) -> None:
    """Blocks are in eight bits, embedders, norms and the last projection are not."""
    module = _eight_bits(info)
    tensors = (*module.parameters(), *module.buffers())
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert taken == weights_bytes(info, "bfloat16", fp8_weights=True)
    kept = {name for name, p in module.named_parameters() if p.dtype == fp8.STORAGE}
    assert all("transformer_blocks." in name for name in kept)
    assert not any("norm_q" in name or "embed" in name for name in kept)
    flux_dev = dataclasses.replace(
        info, config=FLUX_DEV, num_parameters=11_901_408_320, num_heads=24, head_dim=128
    )
    card = 24e9
    assert 2 * memory_bytes(flux_dev, "bfloat16", fp8_weights=True) < 1.1 * card
    assert memory_bytes(flux_dev, "bfloat16") > card


@pytest.mark.parametrize("path", [SINGLE_FILE, PORTRAITS], ids=["golden", "portraits"])
def test_outputs_stay_close(path: Path) -> None:
    """One call of the transformer is off by less than 4 % rms, and not by nothing."""
    model = inspect(path)
    for dtype in (torch.float32, torch.bfloat16):
        wide = _output(load(model, device="cpu", dtype=dtype), model)
        off = (_output(_eight_bits(model, dtype), model) - wide).std() / wide.std()
        assert 1e-3 < off < 0.04


def test_converting_in_memory_equals_loading(info: ModelInfo) -> None:
    """A module with its weights already in place ends up with the same bits."""
    module = load(info, device="cpu", dtype=torch.bfloat16)
    fp8.keep_blocks(module, torch.bfloat16)
    assert torch.equal(_output(module, info), _output(_eight_bits(info), info))


def test_a_patch_works_and_goes_again(info: ModelInfo) -> None:
    """A LoRA a hundred times smaller than the weights is there on average, not rounded away.

    Only what it names changes; reading it again gives the bits from before.
    """
    module = _eight_bits(info)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    layer = module.get_submodule(TO_Q)
    assert isinstance(layer, Fp8Linear)
    unpatched, addresses = layer.value(), (layer.weight.data_ptr(), layer.scale.data_ptr())
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(768, 4, generator=generator), torch.randn(4, 256, generator=generator)
    product = (up @ down)[:256]
    scale = float(0.01 * unpatched.std() / product.std())
    wp.merge(module, info, [wp.Patch(QKV, scale, wp.LowRank(up, down))])
    changed = {
        n for n, p in module.named_parameters() if not torch.equal(p.float(), before[n].float())
    }
    assert changed <= set(wp.affected([wp.Patch(QKV, 1.0, product)], info))
    assert f"{TO_Q}.weight" in changed
    # In place: compiled code and other ranks' views know these addresses.
    assert addresses == (layer.weight.data_ptr(), layer.scale.data_ptr())
    original = load(info, device="cpu", dtype=torch.float32).get_parameter(f"{TO_Q}.weight")
    share = ((layer.value() - original) * product).sum() / (scale * product.square().sum())
    assert 0.5 < share < 1.5
    reload(module, info, changed)
    assert torch.equal(layer.value(), unpatched)


def test_dithering_picks_a_neighbour_by_its_nearness() -> None:
    """Each value goes to one of the two around it, a mean of many is the value, twice the same."""
    for value in (1.03, -0.0101, 300.0, 0.0007):
        many = torch.full((100, 100), value)
        rounded = fp8.dithered(many)
        assert torch.equal(rounded, fp8.dithered(many))
        assert torch.equal(rounded, rounded.to(fp8.STORAGE).float())
        low, high = rounded.min(), rounded.max()
        assert low <= value <= high
        assert rounded.unique().numel() == 2
        assert abs(rounded.mean() - value) < 0.02 * (high - low)


def test_a_bias_is_optional() -> None:
    """Both forms of the layer compute what a linear layer with their weight does."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(32, 16)
    for layer in (linear, nn.Linear(32, 16, bias=False)):
        nn.init.normal_(layer.weight, std=1e-3, generator=generator)
        holder = nn.Module()
        holder._repeated_blocks = ["Sequential"]
        holder.block = nn.Sequential(layer)
        with torch.no_grad():
            x = torch.randn(5, 32, generator=generator)
            fp8.keep_blocks(holder, torch.float32)
            kept = holder.block[0]
            assert isinstance(kept, Fp8Linear)
            expected = nn.functional.linear(x, kept.value(), layer.bias)
            torch.testing.assert_close(kept(x), expected, rtol=1e-5, atol=1e-6)
