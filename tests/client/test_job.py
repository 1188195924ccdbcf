"""From options to the spec and tensors of a job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditmesh.client import FLUX, Conditioning, Snapshot, WeightPatch
from ditmesh.client.job import build_job
from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.tensors import DataType, WireTensor
from ditmesh.v1 import job_pb2 as pb

TEXT = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


def test_plain_job(job: dict[str, Any]) -> None:
    """What is left out becomes 20 euler steps of a seeded simple schedule at cfg 1."""
    spec = build_job(job).spec
    named = spec.schedule.named
    assert (spec.sampler, named.scheduler, named.steps, named.denoise) == (
        "euler",
        "simple",
        20,
        1.0,
    )
    assert not named.HasField("start_step")
    assert spec.noise.WhichOneof("kind") == "seeded"
    assert (spec.cfg, spec.seed) == (1.0, 0)
    assert (spec.empty_latent.batch, spec.empty_latent.height, spec.empty_latent.width) == (1, 4, 6)
    assert not spec.HasField("preview")
    assert not spec.HasField("shift")
    assert not spec.HasField("negative")


def test_every_option_arrives() -> None:
    """Each option becomes the field of its meaning."""
    spec = build_job(
        {
            "model": "flux",
            "positive": Conditioning(TEXT, pooled=TEXT[0], guidance=3.5, extra={"ids": TEXT}),
            "negative": Conditioning(TEXT + 1, guidance=[1.0, 2.0]),
            "latent": np.ones((2, 16, 4, 4), np.float32),
            "steps": 7,
            "sampler": "dpmpp_2m",
            "scheduler": "beta",
            "denoise": 0.6,
            "start_step": 1,
            "end_step": 5,
            "keep_leftover_noise": True,
            "seed": 2**64 - 1,
            "cfg": 3.0,
            "batch_index": [4, 2],
            "noise_mask": np.ones((1, 8, 8), np.float32),
            "shift": 3.0,
            "fallback": "forbid",
            "preview_every": 2,
            "stop_after_step": 3,
            "return_state": True,
            "job_id": "mine",
        }
    ).spec
    assert spec.schedule.named == pb.NamedSchedule(
        scheduler="beta",
        steps=7,
        denoise=0.6,
        start_step=1,
        end_step=5,
        keep_leftover_noise=True,
    )
    assert (spec.job_id, spec.sampler, spec.seed, spec.cfg) == ("mine", "dpmpp_2m", 2**64 - 1, 3.0)
    assert list(spec.noise.seeded.batch_index) == [4, 2]
    assert (spec.shift, spec.stop_after_step, spec.return_state) == (3.0, 3, True)
    assert spec.fallback == pb.FALLBACK_POLICY_FORBID
    assert spec.preview.every_steps == 2
    assert list(spec.positive.guidance) == [3.5]
    assert list(spec.negative.guidance) == [1.0, 2.0]
    shapes = [tuple(tensor.shape) for tensor in spec.tensors]
    assert shapes[spec.positive.text] == (1, 2, 3)
    assert shapes[spec.positive.pooled] == (2, 3)
    assert shapes[spec.positive.extra["ids"]] == (1, 2, 3)
    assert shapes[spec.latent_tensor] == (2, 16, 4, 4)
    assert shapes[spec.noise_mask] == (1, 8, 8)


def test_ids_differ(job: dict[str, Any]) -> None:
    """Each job gets an id of its own, so that it can be taken up again."""
    ids = {build_job(job).spec.job_id for _ in range(20)}
    assert len(ids) == 20


def test_repeating_tensors_are_hashed(job: dict[str, Any]) -> None:
    """Conditioning, latent and mask have hashes; noise, which does not come twice, has none."""
    built = build_job(
        {
            **job,
            "size": None,
            "latent": np.ones((1, 16, 4, 4), np.float32),
            "noise_mask": np.ones((1, 4, 4), np.float32),
            "noise": np.zeros((1, 16, 4, 4), np.float32),
        }
    )
    hashes = [bytes(tensor.sha256) for tensor in built.spec.tensors]
    assert (
        hashes[built.spec.positive.text]
        == WireTensor.from_numpy(built.tensors[built.spec.positive.text].numpy())
        .hashed()
        .spec.sha256
    )
    assert hashes[built.spec.latent_tensor]
    assert hashes[built.spec.noise_mask]
    assert not hashes[built.spec.noise.tensor]


def test_conditioning_is_read_once() -> None:
    """A conditioning that is used again is not converted and hashed again."""
    conditioning = Conditioning(TEXT)
    first = build_job({"model": "m", "positive": conditioning, "size": (1, 2, 2)})
    second = build_job({"model": "m", "positive": conditioning, "size": (1, 2, 2)})
    assert first.tensors[0] is second.tensors[0]


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_latent_format(job: dict[str, Any], value: float) -> None:
    """A latent of an autoencoder's space travels in model space; an empty one stays empty."""
    latent = np.full((1, 16, 4, 4), value, np.float16)
    built = build_job({**job, "size": None, "latent": latent, "latent_format": FLUX})
    sent = built.tensors[built.spec.latent_tensor]
    expected = (value - 0.1159) * 0.3611 if value else 0.0
    assert sent.spec.data_type is DataType.F32
    np.testing.assert_allclose(sent.numpy(), expected, rtol=1e-6)


def test_noise_given_or_none(job: dict[str, Any]) -> None:
    """False adds no noise; a tensor is the noise."""
    noise = np.ones((1, 16, 4, 6), np.float32)
    assert build_job({**job, "noise": False}).spec.noise.WhichOneof("kind") == "none"
    given = build_job({**job, "noise": noise})
    np.testing.assert_array_equal(given.tensors[given.spec.noise.tensor].numpy(), noise)


def test_explicit_sigmas(job: dict[str, Any]) -> None:
    """Sigmas are the whole schedule, whatever they are stored in."""
    for sigmas in ([1.0, 0.5, 0.0], np.array([1, 0.5, 0], np.float32)):
        spec = build_job({**job, "sigmas": sigmas}).spec
        assert list(spec.schedule.explicit.sigmas) == [1.0, 0.5, 0.0]


def test_state_continues(job: dict[str, Any]) -> None:
    """A state's tensors follow the job's own, and its indices with them."""
    latent = WireTensor.from_numpy(np.ones((1, 16, 4, 6), np.float32))
    history = WireTensor.from_numpy(np.zeros((1, 16, 4, 6), np.float32))
    state = Snapshot(pb.JobState(step=3, latent=0, history={"denoised": 1}), (latent, history))
    built = build_job({**job, "state": state})
    assert built.spec.state.step == 3
    assert built.tensors[built.spec.state.latent] is latent
    assert built.tensors[built.spec.state.history["denoised"]] is history


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"sigmas": [1, 0], "steps": 3}, "job.schedule", "steps"),
        ({"latent": np.zeros((1, 16, 2, 2))}, "job.latent", "either"),
        ({"size": None}, "job.latent", "either"),
        ({"fallback": "maybe"}, "job.fallback", "allow, forbid, local_only"),
        ({"noise": False, "batch_index": [1]}, "job.noise.seeded.batch_index", "batch_index"),
        ({"seed": -1}, "", "fit"),
        ({"steps": "many"}, "", "fit"),
    ],
)
def test_contradictions(
    job: dict[str, Any], options: dict[str, Any], field: str, words: str
) -> None:
    """Options that contradict one another, or fit no field, are refused before anything is sent."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        build_job({**job, **options})
    assert caught.value.field == field


def test_unsendable_tensor_names_its_field(job: dict[str, Any]) -> None:
    """A tensor of a type that does not travel is refused by the name of its option."""
    bad = np.zeros((1, 16, 4, 6), np.complex64)
    with pytest.raises(InvalidTensor, match="complex64") as caught:
        build_job({**job, "noise": bad})
    assert caught.value.field == "noise"


def test_misspelt_option(job: dict[str, Any]) -> None:
    """An option that there is not is a TypeError, as for any Python function."""
    with pytest.raises(TypeError, match="'stesp'; did you mean 'steps'"):
        build_job({**job, "stesp": 3})
    with pytest.raises(TypeError, match="'positive' is missing"):
        build_job({"model": "flux"})  # type: ignore[typeddict-item]


def test_weight_patches(job: dict[str, Any]) -> None:
    """Patches keep their order; each is a low-rank product or a difference, of a slice or all."""
    thin = WeightPatch(
        *("a", 0.5),
        up=np.ones((4, 2), np.float32),
        down=np.zeros((2, 3), np.float32),
        slice=(0, 8, 4),
        weight_scale=2.0,
    )
    whole = WeightPatch("b", diff=np.ones((3,), np.float16))
    spec = build_job({**job, "weight_patches": [thin, whole]}).spec
    first, second = spec.weight_patches
    assert (first.weight, first.strength, first.weight_scale) == ("a", 0.5, 2.0)
    assert (first.slice.dimension, first.slice.start, first.slice.length) == (0, 8, 4)
    shapes = [tuple(tensor.shape) for tensor in spec.tensors]
    assert shapes[first.low_rank.up] == (4, 2)
    assert shapes[first.low_rank.down] == (2, 3)
    assert not first.low_rank.HasField("alpha")
    assert shapes[second.diff] == (3,)
    assert not second.HasField("slice")
    assert all(spec.tensors[i].sha256 for i in (first.low_rank.up, second.diff))


@pytest.mark.parametrize(
    "change",
    [{}, {"up": 1}, {"down": 1}, {"up": 1, "diff": 1}, {"up": 1, "down": 1, "diff": 1}],
)
def test_patches_without_one_change(change: dict[str, Any]) -> None:
    """A patch that is neither a product nor a difference, or both, is refused when it is made."""
    with pytest.raises(InvalidRequest, match="patch of a needs either"):
        WeightPatch("a", **change)


def test_torch_tensors() -> None:
    """Tensors of torch are taken as they are, bf16 as bf16."""
    torch = pytest.importorskip("torch")
    text = torch.full((1, 2, 3), 1.5, dtype=torch.bfloat16, requires_grad=True)
    built = build_job({"model": "m", "positive": Conditioning(text), "size": (1, 2, 2)})
    sent = built.tensors[built.spec.positive.text]
    assert sent.spec.data_type is DataType.BF16
    np.testing.assert_array_equal(sent.numpy(), np.full((1, 2, 3), 1.5, np.float32))
