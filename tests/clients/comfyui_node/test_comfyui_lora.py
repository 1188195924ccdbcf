"""LoRA: what stock nodes put on a MODEL arrives whole, or is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clients.comfyui_node.lora import NotSendable, sendable, weight_patches

from .fakes import Patcher

KEY = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
UP, DOWN = torch.ones(6, 2), torch.ones(2, 4)


def adapter(*weights: Any, name: str = "lora") -> Any:
    return SimpleNamespace(name=name, weights=weights)


def patched(*entries: Any) -> Patcher:
    return Patcher(patches={KEY: list(entries)})


def test_low_rank_patches_keep_order_strength_and_slice() -> None:
    """Of one weight, the changes come in the order in which ComfyUI applies them."""
    first = (0.8, adapter(UP, DOWN, 4.0, None, None, None), 1.0, None, None)
    second = (0.5, adapter(UP, DOWN, None, None, None, None), 0.9, (0, 3, 2), None)
    a, b = weight_patches(patched(first, second))
    assert a.weight == "double_blocks.0.img_attn.qkv.weight"
    assert (a.strength, a.alpha, a.weight_scale, a.slice) == (0.8, 4.0, 1.0, None)
    assert (b.strength, b.alpha, b.weight_scale, b.slice) == (0.5, None, 0.9, (0, 3, 2))
    assert torch.equal(a.up, UP)
    assert torch.equal(a.down, DOWN)


def test_convolutions_of_size_1_are_matrices() -> None:
    """Some files store up and down with two more dimensions."""
    wide = adapter(UP[..., None, None], DOWN[..., None, None], 2.0, None, None, None)
    (patch,) = weight_patches(patched((1.0, wide, 1.0, None, None)))
    assert patch.up.shape == UP.shape
    assert patch.down.shape == DOWN.shape


@pytest.mark.parametrize("change", [(torch.ones(3),), ("diff", (torch.ones(3),))])
def test_plain_differences_are_sent(change: Any) -> None:
    """In both of ComfyUI's spellings."""
    (patch,) = weight_patches(patched((1.0, change, 1.0, None, None)))
    assert torch.equal(patch.diff, torch.ones(3))


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ((1.0, adapter(UP, DOWN, 1.0, torch.ones(2, 2), None, None), 1.0, None, None), "middle"),
        ((1.0, adapter(UP, DOWN, 1.0, None, torch.ones(6), None), 1.0, None, None), "DoRA"),
        ((1.0, adapter(UP, DOWN, 1.0, None, None, [9, 9]), 1.0, None, None), "shape"),
        ((1.0, adapter(UP, name="lokr"), 1.0, None, None), "lokr"),
        ((1.0, adapter(UP, DOWN, 1.0, None, None, None), 1.0, None, print), "function"),
        ((1.0, ("set", (torch.ones(3),)), 1.0, None, None), "set"),
        ((1.0, ("diff", (torch.ones(3), {"pad_weight": True})), 1.0, None, None), "diff"),
        ((1.0, [(torch.ones(3),)], 1.0, None, None), "merge"),
    ],
)
def test_every_other_kind_is_refused_by_name(entry: Any, word: str) -> None:
    """A patch that is dropped would be a silently wrong picture."""
    with pytest.raises(NotSendable, match=word):
        weight_patches(patched(entry))


def test_a_model_without_patches_needs_nothing() -> None:
    """Then no option is passed to the client."""
    assert sendable(Patcher()) == {}


def test_patches_are_prepared_once_for_each_set() -> None:
    """The set that was sent last is known by ComfyUI's own id of it."""
    entry = (1.0, ("diff", (torch.ones(3),)), 1.0, None, None)
    one, two = patched(entry), patched(entry)
    two.patches_uuid = "two"
    assert sendable(one)["weight_patches"] is sendable(one)["weight_patches"]
    assert sendable(one)["weight_patches"] is not sendable(two)["weight_patches"]
