"""The remote transformer: every input arrives, and what cannot be sent is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from clients.comfyui_node import comfy_api, transformer
from clients.comfyui_node.dispatcher import Dispatcher
from clients.comfyui_node.transformer import RemoteError, RemoteTransformer, Unsupported
from ditmesh.errors import DeadlineExceeded, Unavailable

from .fakes import Patcher

SHAPES = {"img_in.weight": (8, 4)}


class Stream:
    """Answers x + 1 and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.closed = False
        self.limits: list[float | None] = []
        self.executor, self.fallback_reason = "group", ""

    def predict(self, x: Any, timestep: Any, conditioning: Any, *, timeout_s: Any) -> Any:
        self.limits.append(timeout_s)
        if self.error is not None:
            raise self.error
        self.asked.append((x, timestep, conditioning))
        return (x + 1).numpy().astype(np.float32)

    def close(self) -> None:
        self.closed = True


class Client:
    """Opens streams."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def predict_stream(self, model: str, **options: Any) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]


class Base:
    """ComfyUI's model around the transformer."""

    current_patcher: Any = None


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A cluster, and a ComfyUI without wrappers."""
    found = Client()
    monkeypatch.setattr(Dispatcher, "client", lambda self: found)
    monkeypatch.setattr(comfy_api, "raise_if_cancelled", lambda: None)
    monkeypatch.setattr(comfy_api, "with_model_wrappers", lambda forward, module, options: forward)
    return found


@pytest.fixture
def module(client: Client) -> RemoteTransformer:
    """A transformer on that cluster."""
    return RemoteTransformer(Dispatcher("here:1"), "flux", SHAPES)


def inputs(batch: int = 2, **changes: Any) -> dict[str, Any]:
    text = torch.arange(12.0).reshape(1, 3, 4).repeat(batch, 1, 1)
    return {
        "x": torch.ones(batch, 16, 4, 6),
        "timestep": torch.full((batch,), 0.25),
        "context": text,
        "y": torch.ones(batch, 5),
        "guidance": torch.full((batch,), 3.5),
        "transformer_options": {},
        **changes,
    }


def test_a_call_carries_everything(module: RemoteTransformer, client: Client) -> None:
    """Rows that ComfyUI repeats for each picture are sent once."""
    output = module(**inputs())
    assert torch.equal(output, torch.full((2, 16, 4, 6), 2.0))
    ((x, timestep, conditioning),) = client.streams[0].asked
    assert x.shape == (2, 16, 4, 6)
    assert timestep == [0.25, 0.25]
    assert conditioning.text.shape == (1, 3, 4)
    assert conditioning.pooled.shape == (1, 5)
    assert conditioning.guidance == [3.5, 3.5]
    assert module.calls == 1


def test_prompts_that_differ_stay_apart(module: RemoteTransformer, client: Client) -> None:
    """ComfyUI puts both prompts of guidance into one batch where it can."""
    module(**inputs(context=torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))))
    assert client.streams[0].asked[0][2].text.shape == (2, 3, 4)


def test_a_conditioning_is_prepared_once(module: RemoteTransformer, client: Client) -> None:
    """Equal values in new tensors are the same conditioning, hashed once; others are not."""
    for _ in range(3):
        module(**inputs())
    module(**inputs(guidance=torch.full((2,), 4.0)))
    sent = [conditioning for _, _, conditioning in client.streams[0].asked]
    assert sent[0] is sent[1] is sent[2]
    assert sent[3] is not sent[0]


def test_the_type_of_x_comes_back(module: RemoteTransformer) -> None:
    """ComfyUI may compute in another type than the wire's."""
    assert module(**inputs(x=torch.ones(2, 16, 4, 6, dtype=torch.bfloat16))).dtype == torch.bfloat16


def test_odd_sizes_are_padded_and_cut(
    module: RemoteTransformer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster sees multiples of the patch size, ComfyUI its own size."""

    def pad(x: torch.Tensor, patch: int) -> torch.Tensor:
        rows, columns = (-x.shape[2] % patch, -x.shape[3] % patch)
        return torch.nn.functional.pad(x, (0, columns, 0, rows), mode="circular")

    monkeypatch.setattr(comfy_api, "pad_to_patch_size", pad)
    assert module(**inputs(x=torch.ones(2, 16, 5, 7))).shape == (2, 16, 5, 7)
    assert client.streams[0].asked[0][0].shape == (2, 16, 6, 8)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"control": {"input": [1]}}, "ControlNet"),
        ({"ref_latents": [torch.ones(1)]}, "reference images"),
        ({"attention_mask": torch.ones(1)}, "attention_mask"),
        ({"transformer_options": {"patches": {"double_block": [print]}}}, "double_block"),
        ({"transformer_options": {"patches_replace": {"dit": {1: print}}}}, "dit"),
        ({"context": None}, "prompt"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    module: RemoteTransformer, client: Client, changes: dict[str, Any], word: str
) -> None:
    """By name, and before anything is sent."""
    with pytest.raises(Unsupported, match=word):
        module(**inputs(**changes))
    assert client.streams == []


def test_a_patched_model_is_refused_while_it_samples(module: RemoteTransformer) -> None:
    """Hooks are on the MODEL, not among the inputs."""
    base = Base()
    base.current_patcher = Patcher(hook_patches={"a": {"b": [1]}})
    module.belongs_to(base)
    with pytest.raises(Unsupported, match="hooks"):
        module(**inputs())


def test_a_cluster_that_fails_gives_an_error_in_words(
    module: RemoteTransformer, client: Client
) -> None:
    """With the model and the address; the next call opens a new stream."""
    module(**inputs())
    client.streams[0].error = Unavailable("The group is gone.")
    with pytest.raises(RemoteError, match=r"here:1 did not compute 'flux': The group is gone"):
        module(**inputs())
    assert client.streams[0].closed
    module(**inputs())
    assert len(client.streams) == 2


def test_names_of_weights_are_reported_without_weights(module: RemoteTransformer) -> None:
    """Stock LoRA nodes look for them; nothing is allocated."""
    (weight,) = module.state_dict().values()
    assert list(module.state_dict()) == ["img_in.weight"]
    assert tuple(weight.shape) == (8, 4)
    assert weight.device.type == "meta"
    assert sum(parameter.numel() for parameter in module.parameters()) == 0


def test_a_model_of_unknown_weights_takes_no_lora(client: Client) -> None:
    """ComfyUI would drop it and only log that."""
    with pytest.raises(Unsupported, match="LoRA"):
        RemoteTransformer(Dispatcher("here:1"), "flux", {}).state_dict()


def test_conditionings_are_forgotten_in_time(module: RemoteTransformer, client: Client) -> None:
    """Only the newest are kept."""
    for value in itertools.islice(itertools.count(1.0), 20):
        module(**inputs(guidance=torch.full((2,), value)))
    assert len(module._conditionings) < 20


def test_the_calls_of_one_picture_share_its_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets what is left; when nothing is, the error names the limit. Other calls are limited
    one by one.
    """
    now = 100.0
    monkeypatch.setattr(transformer, "monotonic", lambda: now)
    module = RemoteTransformer(Dispatcher("here:1", timeout_s=10.0), "flux", SHAPES)
    with module.one_picture():
        module(**inputs())
        now = 106.0
        module(**inputs())
        now = 111.0
        with pytest.raises(RemoteError, match="time limit of 10 s"):
            module(**inputs())
    module(**inputs())
    assert client.streams[0].limits == [10.0, 4.0, 10.0]


def test_weights_that_a_node_asks_for_are_not_here(module: RemoteTransformer) -> None:
    """In words for the user; still an AttributeError, by which ComfyUI finds out what there is."""
    with pytest.raises(AttributeError, match="'img_in' of 'flux', which are on a ditmesh cluster"):
        _ = module.img_in
    assert not hasattr(module, "something_else")


def test_an_answer_that_comes_too_late_names_the_limit(client: Client) -> None:
    """That of the dispatcher, not what was left of it for the call."""
    module = RemoteTransformer(Dispatcher("here:1", timeout_s=10.0), "flux", SHAPES)
    module(**inputs())
    client.streams[0].error = DeadlineExceeded("no answer came within 0.3 s")
    with module.one_picture(), pytest.raises(RemoteError, match="time limit of 10 s"):
        module(**inputs())
