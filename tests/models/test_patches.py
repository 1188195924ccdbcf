"""Weight patches: merged as if the file had held the changed weights, and taken back to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.models import patches as wp
from ditmesh.models.info import ModelInfo, inspect
from ditmesh.models.loading import load, reload

TINY = Path(__file__).parent.parent / "golden" / "tiny_flux_bfl.safetensors"

QKV = "double_blocks.0.img_attn.qkv.weight"
LINEAR1 = "single_blocks.0.linear1.weight"
FINAL = "final_layer.adaLN_modulation.1.weight"


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def _some_patches(stored: dict[str, Tensor]) -> list[wp.Patch]:
    hidden = 256
    rows, columns = stored[LINEAR1].shape
    return [
        wp.Patch(QKV, 0.7, wp.LowRank(_random(768, 4, seed=1), _random(4, hidden, seed=2))),
        # Rows across the border between query and key.
        wp.Patch(
            QKV,
            -0.3,
            wp.LowRank(_random(100, 2, seed=3), _random(2, hidden, seed=4)),
            start=200,
            length=100,
        ),
        wp.Patch(
            LINEAR1,
            1.5,
            _random(rows, 16, seed=5),
            weight_scale=0.9,
            dimension=1,
            start=columns - 16,
            length=16,
        ),
        wp.Patch(FINAL, 1.0, _random(*stored[FINAL].shape, seed=6)),
        wp.Patch("img_in.bias", 2.0, _random(hidden, seed=7)),
    ]


def _applied(stored: dict[str, Tensor], patches: list[wp.Patch]) -> dict[str, Tensor]:
    """The stored weights with the patches added, by the definition."""
    out = {name: tensor.float().clone() for name, tensor in stored.items()}
    for patch in patches:
        weight = out[patch.weight]
        weight *= patch.weight_scale
        part = weight
        if patch.length is not None:
            part = weight.narrow(patch.dimension, patch.start, patch.length)
        part += patch.delta(torch.device("cpu"))
    return out


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.fixture
def info() -> ModelInfo:
    return inspect(TINY)


def test_merging_equals_loading_a_file_with_the_changed_weights(
    info: ModelInfo, tmp_path: Path
) -> None:
    """Every parameter has the bits that it would have had from a file with the patches in it."""
    stored = load_file(TINY)
    patches = _some_patches(stored)
    save_file(_applied(stored, patches), tmp_path / "changed.safetensors")
    expected = load(inspect(tmp_path / "changed.safetensors"), device="cpu", dtype=torch.float32)
    module = load(info, device="cpu", dtype=torch.float32)
    wp.check(patches, info)
    wp.merge(module, info, patches)
    for name, value in _parameters(expected).items():
        torch.testing.assert_close(module.get_parameter(name), value, rtol=0, atol=1e-6)


def test_only_what_a_patch_names_changes_and_reload_takes_it_back(info: ModelInfo) -> None:
    """`affected` is exactly what changed, and reloading it restores the original bits."""
    module = load(info, device="cpu", dtype=torch.float32)
    before = _parameters(module)
    patches = _some_patches(load_file(TINY))
    wp.merge(module, info, patches)
    changed = {n for n, v in _parameters(module).items() if not torch.equal(v, before[n])}
    assert changed == set(wp.affected(patches, info))
    reload(module, info, changed)
    for name, value in _parameters(module).items():
        assert torch.equal(value, before[name]), name


def test_a_bf16_model_is_rounded_once(info: ModelInfo) -> None:
    """Two small changes that bf16 alone would lose add up before the weight is rounded."""
    module = load(info, device="cpu", dtype=torch.bfloat16)
    before = module.get_parameter("x_embedder.bias").detach().clone()
    step = before.float().abs() * 2**-9
    wp.merge(module, info, [wp.Patch("img_in.bias", 1.0, step)] * 4)
    expected = (before.float() + 4 * step).to(torch.bfloat16)
    after = module.get_parameter("x_embedder.bias")
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("patch", "error", "words"),
    [
        (wp.Patch("nothing.weight", 1.0, torch.zeros(1)), InvalidRequest, "does not have"),
        (wp.Patch(QKV, 1.0, torch.zeros(3, 3)), InvalidTensor, "is needed"),
        (
            wp.Patch(QKV, 1.0, torch.zeros(10, 256), start=760, length=10),
            InvalidRequest,
            "beyond its end",
        ),
        (
            wp.Patch("img_in.bias", 1.0, torch.zeros(256), dimension=1, length=1),
            InvalidRequest,
            "not there",
        ),
    ],
)
def test_patches_that_do_not_fit_are_refused(
    info: ModelInfo, patch: wp.Patch, error: type[InvalidRequest], words: str
) -> None:
    """An unknown weight, a wrong shape and a slice beyond the end name the patch at fault."""
    with pytest.raises(error, match=words) as caught:
        wp.check([patch], info)
    assert caught.value.field.startswith("weight_patches[0]")
