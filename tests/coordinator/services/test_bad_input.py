"""What a bad job gets: the right code, the field, words that help, and nothing retained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from coordinator.config import Limits
from ditmesh.errors import DitmeshError
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2
from tests.coordinator.client import served
from tests.coordinator.fakes import f32, make_job, run

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LIMITS = Limits(
    request_bytes=1 << 20,
    in_flight_bytes=2 << 20,
    latent_cells=64 * 64,
    text_tokens=32,
)
Made = tuple[job_pb2.JobSpec, list[WireTensor]]


@dataclass
class Bad:
    """A job that must be refused, for `field`, in words that hold `words`."""

    make: Callable[[], Made]
    field: str
    words: str
    code: grpc.StatusCode = INVALID


def fields(**changes: Any) -> Callable[[], Made]:
    return lambda: make_job(**changes)


def changed(change: Callable[[job_pb2.JobSpec], object], *extra: WireTensor) -> Callable[[], Made]:
    def make() -> Made:
        spec, tensors = make_job(tensors=extra)
        change(spec)
        return spec, tensors

    return make


def named(**options: Any) -> Callable[[], Made]:
    return changed(
        lambda s: s.schedule.named.MergeFrom(job_pb2.NamedSchedule(**options)),
    )


def sigmas(*values: float) -> Callable[[], Made]:
    return changed(lambda s: s.schedule.explicit.sigmas.extend(values))


def latent(*shape: int, value: float = 0.5) -> Callable[[], Made]:
    return changed(lambda s: setattr(s, "latent_tensor", 2), f32(*shape, value=value))


def with_text(tensor: WireTensor) -> Callable[[], Made]:
    return changed(lambda s: setattr(s.positive, "text", 2), tensor)


def with_pooled(tensor: WireTensor) -> Callable[[], Made]:
    return changed(lambda s: setattr(s.positive, "pooled", 2), tensor)


def mask(tensor: WireTensor) -> Callable[[], Made]:
    return changed(lambda s: setattr(s, "noise_mask", 2), tensor)


def with_state(tensor: WireTensor, **state: Any) -> Callable[[], Made]:
    message = job_pb2.JobState(**{"step": 2, "sampler_revision": 1, "latent": 2, **state})
    return changed(lambda s: s.state.CopyFrom(message), tensor)


def hurt(value: float) -> WireTensor:
    array = np.zeros((1, 2, 64), np.float32)
    array[0, 1, 63] = value
    return WireTensor.from_numpy(array)


BAD = {
    "model": Bad(fields(model="big"), "job.model", "serves: tiny", grpc.StatusCode.NOT_FOUND),
    "sampler": Bad(fields(sampler="eular"), "job.sampler", "euler_ancestral"),
    "schedule": Bad(named(scheduler="simpel"), "job.schedule.named.scheduler", "sgm_uniform"),
    "no schedule": Bad(changed(lambda s: s.ClearField("schedule")), "job.schedule", "explicit"),
    "job id": Bad(fields(job_id="a/b"), "job.job_id", "1 to 128"),
    "long job id": Bad(fields(job_id="a" * 129), "job.job_id", "1 to 128"),
    "policy": Bad(fields(fallback=77), "job.fallback", "FALLBACK_POLICY_FORBID"),
    "no latent": Bad(changed(lambda s: s.ClearField("empty_latent")), "job.latent", "empty_latent"),
    "channels": Bad(latent(1, 4, 4, 4), "job.latent_tensor", "16"),
    "latent dimensions": Bad(latent(16, 4, 4), "job.latent_tensor", "[B, 16, H, W]"),
    "odd rows": Bad(latent(1, 16, 5, 4), "job.latent_tensor", "multiples of 2"),
    "odd columns": Bad(
        changed(lambda s: setattr(s.empty_latent, "width", 3)),
        "job.empty_latent",
        "multiples of 2",
    ),
    "no rows": Bad(
        changed(lambda s: setattr(s.empty_latent, "height", 0)), "job.empty_latent", "at least 1"
    ),
    "pixels": Bad(
        changed(lambda s: setattr(s.empty_latent, "height", 2048)),
        "job.empty_latent",
        "at most 4096",
    ),
    "huge": Bad(
        changed(lambda s: setattr(s.empty_latent, "batch", 2**32 - 1)),
        "job.empty_latent",
        "at most 4096",
    ),
    "bytes": Bad(latent(1, 16, 64, 300), "job.tensors[2]", "at most 1048576 bytes"),
    "bytes in all": Bad(
        changed(lambda s: None, *(f32(100_000) for _ in range(3))), "job.tensors", "in all"
    ),
    "steps 0": Bad(fields(steps=0), "job.schedule.named.steps", "1 to 10000"),
    "steps": Bad(fields(steps=10_001), "job.schedule.named.steps", "1 to 10000"),
    "steps beyond the levels": Bad(
        fields(steps=2000, shift=0.0), "job.schedule.named.steps", "use fewer steps"
    ),
    "denoise": Bad(named(denoise=1.5), "job.schedule.named.denoise", "0 to 1"),
    "denoise nan": Bad(named(denoise=float("nan")), "job.schedule.named.denoise", "0 to 1"),
    "tiny denoise": Bad(named(denoise=1e-9), "job.schedule.named.denoise", "too small"),
    "cfg": Bad(fields(cfg=1000.5), "job.cfg", "0 to 1000"),
    "negative cfg": Bad(fields(cfg=-1.0), "job.cfg", "0 to 1000"),
    "cfg nan": Bad(fields(cfg=float("nan")), "job.cfg", "0 to 1000"),
    "no negative": Bad(fields(cfg=3.0), "job.negative", "negative conditioning"),
    "shift": Bad(fields(shift=float("inf")), "job.shift", "out of range"),
    "one sigma": Bad(sigmas(1.0), "job.schedule.explicit.sigmas", "2 to 10001"),
    "rising sigmas": Bad(sigmas(0.1, 0.5), "job.schedule.explicit.sigmas", "descend"),
    "sigma nan": Bad(sigmas(1.0, float("nan")), "job.schedule.explicit.sigmas", "finite"),
    "sigma 2": Bad(sigmas(2.0, 0.0), "job.schedule.explicit.sigmas", "end at 1"),
    "sigma -1": Bad(sigmas(1.0, -1.0), "job.schedule.explicit.sigmas", "negative"),
    "sigmas": Bad(
        sigmas(*np.linspace(1.0, 0.0, 10_002)), "job.schedule.explicit.sigmas", "2 to 10001"
    ),
    "no text": Bad(
        changed(lambda s: s.positive.ClearField("text")), "job.positive.text", "missing"
    ),
    "text width": Bad(with_text(f32(1, 2, 63)), "job.positive.text", "[1 or 1, T, 64]"),
    "text batch": Bad(with_text(f32(3, 2, 64)), "job.positive.text", "[1 or 1, T, 64]"),
    "text length": Bad(with_text(f32(1, 33, 64)), "job.positive.text", "at most 32"),
    "text type": Bad(
        with_text(WireTensor.from_numpy(np.zeros((1, 2, 64), np.int64))),
        "job.positive.text",
        "floating point",
    ),
    "text nan": Bad(with_text(hurt(float("nan"))), "job.tensors[2]", "NaN or infinite"),
    "text infinite": Bad(with_text(hurt(float("inf"))), "job.tensors[2]", "NaN or infinite"),
    "pooled": Bad(with_pooled(f32(1, 31)), "job.positive.pooled", "32"),
    "no such tensor": Bad(
        changed(lambda s: setattr(s.positive, "text", 9)), "job.positive.text", "2 entries"
    ),
    "guidance count": Bad(
        changed(lambda s: s.positive.guidance.extend([1.0, 2.0])),
        "job.positive.guidance",
        "1 or 1",
    ),
    "guidance nan": Bad(
        changed(lambda s: s.positive.guidance.append(float("nan"))),
        "job.positive.guidance",
        "0 to 1000",
    ),
    "extra": Bad(
        changed(lambda s: s.positive.extra.update({"clip_vision": 0})),
        "job.positive.extra",
        "clip_vision",
    ),
    "noise shape": Bad(
        changed(lambda s: setattr(s.noise, "tensor", 2), f32(1, 16, 4, 6)),
        "job.noise.tensor",
        "[1, 16, 4, 4]",
    ),
    "batch positions": Bad(
        changed(lambda s: s.noise.seeded.batch_index.extend([0, 1])),
        "job.noise.seeded.batch_index",
        "batch of 1",
    ),
    "far batch position": Bad(
        changed(lambda s: s.noise.seeded.batch_index.append(5000)),
        "job.noise.seeded.batch_index",
        "0 to 4096",
    ),
    "mask shape": Bad(mask(f32(4, 4)), "job.noise_mask", "[1 or 1, 1, h, w]"),
    "mask values": Bad(mask(f32(1, 4, 4, value=1.5)), "job.noise_mask", "0 to 1"),
    "preview": Bad(
        changed(lambda s: s.preview.SetInParent()), "job.preview.every_steps", "at least 1"
    ),
    "state step": Bad(with_state(f32(1, 16, 4, 4), step=5), "job.state.step", "has 4"),
    "state shape": Bad(with_state(f32(1, 16, 4, 6)), "job.state.latent", "[1, 16, 4, 4]"),
    "state type": Bad(
        with_state(WireTensor.from_numpy(np.zeros((1, 16, 4, 4), np.float16))),
        "job.state.latent",
        "f32",
    ),
    "state history": Bad(
        with_state(f32(1, 16, 4, 4), history={"other": 2}), "job.state.history", "['other']"
    ),
    "noise draws": Bad(
        with_state(f32(1, 16, 4, 4), noise_draws=2**60), "job.state.noise_draws", "impossible"
    ),
    "stop after": Bad(fields(stop_after_step=5), "job.stop_after_step", "0 to 4"),
    "dtype": Bad(
        changed(lambda s: s.tensors.add(shape=[1])), "job.tensors[2].data_type", "DATA_TYPE_F32"
    ),
    "shape": Bad(
        changed(lambda s: s.tensors.add(shape=[0], data_type="DATA_TYPE_F32")),
        "job.tensors[2].shape",
        "at least 1",
    ),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[DitmeshError, int]]:
    """Every bad job sent to one server, then a good one; what was held after each."""

    async def test() -> dict[str, tuple[DitmeshError, int]]:
        got = {}
        async with served(limits=LIMITS) as s:
            for name, bad in BAD.items():
                spec, tensors = bad.make()
                got[name] = (await s.refused(spec, tensors), s.world.jobs.bytes_in_flight)
                assert not s.world.jobs._records, name
            assert (await s.sample(*make_job("good")))[-1].HasField("summary")
        return got

    return run(test())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_refused_by_its_name(
    name: str, answers: dict[str, tuple[DitmeshError, int]]
) -> None:
    """Code, field and words; nothing is held for it, and the server takes the next job."""
    error, held = answers[name]
    bad = BAD[name]
    assert (error.code, error.field) == (bad.code, bad.field), error.message
    assert bad.words in error.message
    assert held == 0


def test_an_empty_latent_of_another_channel_count_is_widened() -> None:
    """As ComfyUI does; the executor gets the model's channels."""

    async def test() -> None:
        async with served() as s:
            for channels in (4, 32):
                spec, tensors = make_job(f"c{channels}", tensors=[f32(1, channels, 4, 4, value=0)])
                spec.latent_tensor = 2
                answers = await s.sample(spec, tensors)
                (result,) = (a.result for a in answers if a.HasField("result"))
                assert list(result.tensors[result.latent].shape) == [1, 16, 4, 4]

    run(test())
