"""Who samples: the cluster in the best way it can, or ComfyUI with a reason, or a plain error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clients.comfyui_node import comfy_api, sampling, whole_job
from clients.comfyui_node.dispatcher import CLUSTER_ONLY, GROUP_ONLY, GROUP_OR_COMFYUI, Dispatcher
from clients.comfyui_node.request import SamplingRequest
from ditmesh.client import Accepted, Done, Progress, SampleResult, Segment, Summary
from ditmesh.errors import DitmeshError, InvalidRequest, Overloaded, Unavailable

from .fakes import Patcher, conditioning, request

SUMMARY = Summary(
    job_id="job",
    trace_id="ab" * 16,
    segments=(Segment("group", 1, 8, "ulysses=8", 0, 4, 0.5),),
    fallbacks=(),
    queue_seconds=0.0,
    run_seconds=0.5,
)


class Job:
    """A job that takes two steps, or fails."""

    def __init__(self, error: DitmeshError | None) -> None:
        self.error = error
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        yield Accepted("job", 2, 0, False)
        if self.error is not None:
            raise self.error
        yield Progress(1, 2, 0.5, "group", np.zeros((1, 8, 8, 3), np.uint8))
        yield Progress(2, 2, 0.0, "group")
        yield Done(SampleResult(np.full((1, 16, 8, 8), 4.0, np.float32), None, SUMMARY))

    def cancel(self, timeout_s: float) -> None:
        self.cancelled = True

    def close(self) -> None:
        pass


class Client:
    """A cluster with one model, which may be down or refuse jobs."""

    def __init__(self) -> None:
        self.down: DitmeshError | None = None
        self.refusal: DitmeshError | None = None
        self.jobs: list[dict[str, Any]] = []
        self.job: Job | None = None

    def cluster(self) -> Any:
        if self.down is not None:
            raise self.down
        common = {"fingerprint": "same", "size_multiple": 2}
        copy = SimpleNamespace(name="copy", on_group=False, **common)
        card = SimpleNamespace(name="flux", on_group=True, **common)
        return SimpleNamespace(models=[copy, card], model=lambda name: card)

    def start(self, **options: Any) -> Job:
        self.jobs.append(options)
        self.job = Job(self.refusal)
        return self.job


class Comfy:
    """ComfyUI, as far as the pack asks it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sampled: list[SamplingRequest] = []
        self.bar: list[int] = []
        self.cancel_at: int | None = None
        self.sigmas = [1.0, 0.5, 0.0]
        for name in ("run_ksampler", "levels", "widened_latent", "from_model_space"):
            monkeypatch.setattr(comfy_api, name, getattr(self, name))
        monkeypatch.setattr(comfy_api, "raise_if_cancelled", lambda: None)
        monkeypatch.setattr(comfy_api, "StepBar", lambda patcher, steps: self)
        self.shows_previews = True

    def run_ksampler(self, request: SamplingRequest) -> dict[str, Any]:
        self.sampled.append(request)
        return {"samples": "comfyui"}

    def levels(self, request: SamplingRequest) -> list[float]:
        return self.sigmas

    def widened_latent(self, request: SamplingRequest) -> Any:
        return request.latent["samples"]

    def from_model_space(self, patcher: Any, latent: Any) -> Any:
        return latent / 2

    def advance(self, step: int, steps: int, preview: Any = None) -> None:
        if step == self.cancel_at:
            raise KeyboardInterrupt
        self.bar.append(step)


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """ComfyUI's stand-in, in place."""
    return Comfy(monkeypatch)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, comfy: Comfy) -> Client:
    """A cluster that recognises every MODEL."""
    found = Client()
    monkeypatch.setattr(Dispatcher, "client", lambda self: found)
    monkeypatch.setattr(sampling, "model_fingerprint", lambda patcher: "same")
    monkeypatch.setattr(sampling, "make_twin", lambda patcher, dispatcher, model: TWIN)
    return found


@pytest.fixture
def far_model() -> Patcher:
    """A MODEL without weights whose cluster is another than the sampler's."""
    return Patcher(model=SimpleNamespace(diffusion_model=RemoteTransformer()))


class RemoteTransformer:
    """By its name, the pack knows a MODEL without weights."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher("far:1")
        self.model = "flux"
        self.fingerprint = "same"
        self.calls = 0
        self.executor = "group"
        self.fallback_reason = ""

    def one_picture(self) -> Any:
        return contextlib.nullcontext()


TWIN = Patcher(model=SimpleNamespace(diffusion_model=RemoteTransformer()))


def run(given: SamplingRequest | None = None, fallback: str = "allow") -> Any:
    shown: list[str] = []
    dispatcher = Dispatcher("here:1", fallback=fallback)
    latent, report = sampling.sample(given or request(), dispatcher, shown.append)
    return latent, report, shown


def test_a_recognised_model_is_sampled_as_a_whole_job(client: Client, comfy: Comfy) -> None:
    """The job carries ComfyUI's own levels; the bar moves; the result is a LATENT as it came in."""
    given = request(latent={"samples": torch.zeros(1, 16, 8, 8), "batch_index": [3]})
    latent, report, _ = run(given)
    (job,) = client.jobs
    assert (job["model"], job["sampler"], job["seed"], job["sigmas"]) == (
        "flux",
        "euler",
        7,
        [1.0, 0.5, 0.0],
    )
    assert job["shift"] == 1.15
    assert job["batch_index"] == [3]
    assert job["preview_every"] == 1
    assert job["negative"] is None
    assert comfy.bar == [1, 2]
    assert comfy.sampled == []
    assert float(latent["samples"][0, 0, 0, 0]) == 2.0
    assert latent["batch_index"] == [3]
    assert report.data["sampled_by"] == "cluster"
    assert "8 ranks (ulysses=8): 4 steps" in report.text
    assert "ab" * 16 in report.text


def test_a_latent_goes_to_model_space_and_an_empty_one_stays_empty(client: Client) -> None:
    """ComfyUI does not shift an empty latent."""
    run(request(latent={"samples": torch.ones(1, 16, 8, 8)}))
    run(request())
    assert float(client.jobs[0]["latent"].max()) == 2.0
    assert float(client.jobs[1]["latent"].abs().max()) == 0.0


def test_advanced_options_reach_the_job(client: Client) -> None:
    """Without noise, with guidance of both prompts."""
    run(request(disable_noise=True, cfg=3.0, negative=conditioning(guidance=2.0)))
    (job,) = client.jobs
    assert job["noise"] is False
    assert job["cfg"] == 3.0
    assert job["negative"].guidance == 2.0


def test_what_is_no_whole_job_goes_step_by_step(client: Client, comfy: Comfy) -> None:
    """ComfyUI samples with the cluster's transformer, and the node says why."""
    latent, report, _ = run(request(sampler_name="dpm_adaptive"))
    (given,) = comfy.sampled
    assert given.model is TWIN
    assert latent == {"samples": "comfyui"}
    assert report.data["sampled_by"] == "steps"
    assert "dpm_adaptive" in report.text


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [([], "no step"), ([1.0], "no step"), ([1.0, 0.5, 0.5, 0.0], "repeats a noise level")],
)
def test_levels_that_are_no_schedule_go_step_by_step(
    client: Client, comfy: Comfy, sigmas: list[float], words: str
) -> None:
    """Nothing to sample, and schedules with a level twice, are ComfyUI's affair."""
    comfy.sigmas = sigmas
    _, report, _ = run()
    assert report.data["sampled_by"] == "steps"
    assert words in report.text


def test_a_refused_whole_job_goes_step_by_step(client: Client) -> None:
    """A cluster may know less than this pack expects."""
    client.refusal = InvalidRequest("unknown sampler")
    _, report, _ = run()
    assert report.data["sampled_by"] == "steps"
    assert "unknown sampler" in report.text


@pytest.mark.parametrize("error", [Unavailable("it is down"), Overloaded("it is full")])
def test_comfyui_takes_over_and_says_why(
    client: Client, comfy: Comfy, error: DitmeshError, caplog: pytest.LogCaptureFixture
) -> None:
    """Down before the job or during it: one line in the log, the reason on the node."""
    client.down = error
    _, report, shown = run()
    client.down, client.refusal = None, error
    _, report, shown = run()
    assert [given.model is not TWIN for given in comfy.sampled] == [True, True]
    assert report.data["sampled_by"] == "comfyui"
    assert str(error) in report.text
    assert any(str(error) in line for line in shown)
    assert len(caplog.records) == 2


def test_the_cluster_is_used_again_once_it_is_back(client: Client) -> None:
    """Nothing remembers that it was down, the connection to it least of all."""
    client.down = Unavailable("it is down")
    run()
    client.down = None
    _, report, _ = run()
    assert report.data["sampled_by"] == "cluster"


def test_an_unknown_model_is_sampled_in_comfyui(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights than the cluster's are never sent there."""
    monkeypatch.setattr(sampling, "model_fingerprint", lambda patcher: "other")
    _, report, _ = run()
    assert report.data["sampled_by"] == "comfyui"
    assert client.jobs == []


@pytest.mark.parametrize("fallback", [CLUSTER_ONLY, GROUP_ONLY])
def test_the_dispatcher_may_forbid_comfyui(client: Client, comfy: Comfy, fallback: str) -> None:
    """Then the error says what would help."""
    client.down = Unavailable("it is down")
    with pytest.raises(sampling.SamplingFailed, match=r"it is down\..*fallback"):
        run(fallback=fallback)
    assert comfy.sampled == []


@pytest.mark.parametrize(
    ("fallback", "policy"),
    [
        ("allow", "allow"),
        (CLUSTER_ONLY, "allow"),
        (GROUP_OR_COMFYUI, "forbid"),
        (GROUP_ONLY, "forbid"),
    ],
)
def test_the_dispatcher_rules_the_coordinators_sampler(
    client: Client, fallback: str, policy: str
) -> None:
    """Four choices for two samplers beside the group."""
    run(fallback=fallback)
    assert client.jobs[0]["fallback"] == policy


def test_a_model_without_weights_gives_a_plain_error(client: Client, comfy: Comfy) -> None:
    """ComfyUI cannot sample it, and it is not tried."""
    client.down = Unavailable("it is down")
    with pytest.raises(sampling.SamplingFailed, match="no weights here"):
        run(request(model=TWIN))
    assert comfy.sampled == []


def test_a_remote_model_brings_its_own_cluster(client: Client) -> None:
    """A sampler without a dispatcher uses the one of its MODEL."""
    shown: list[str] = []
    sampling.sample(request(model=TWIN), None, shown.append)
    assert "far:1" in shown[0]


def test_a_remote_model_is_recognised_on_another_cluster(
    client: Client, comfy: Comfy, far_model: Patcher
) -> None:
    """By its weights: other weights may have the same name there."""
    _, report, _ = run(request(model=far_model))
    assert report.data["sampled_by"] == "cluster"
    run(request(model=far_model, sampler_name="dpm_adaptive"))
    assert comfy.sampled[0].model is TWIN
    far_model.model.diffusion_model.fingerprint = "other"
    with pytest.raises(sampling.SamplingFailed, match="does not have this MODEL's weights"):
        run(request(model=far_model))


def test_on_its_own_cluster_a_remote_model_is_used_as_it_is(
    client: Client, comfy: Comfy, far_model: Patcher
) -> None:
    """On other terms than the MODEL's, its twin is sampled, so that the sampler's terms hold."""
    far_model.model.diffusion_model.fingerprint = "of a model that was replaced"
    given = request(model=far_model, sampler_name="dpm_adaptive")
    for dispatcher in (Dispatcher("far:1"), Dispatcher("far:1", fallback=GROUP_ONLY)):
        sampling.sample(given, dispatcher, lambda text: None)
    assert [each.model for each in comfy.sampled] == [far_model, TWIN]


def test_cancel_between_steps_ends_the_job(client: Client, comfy: Comfy) -> None:
    """ComfyUI's progress bar raises; the cluster is told before the exception goes on."""
    comfy.cancel_at = 2
    with pytest.raises(KeyboardInterrupt):
        run()
    assert client.job is not None
    assert client.job.cancelled
    assert comfy.sampled == []


def test_the_queue_position_is_shown() -> None:
    """While others are served."""
    shown: list[str] = []
    whole_job._show_place(2, Dispatcher("here:1"), shown.append)
    assert shown == ["Waiting at here:1: 2 jobs before this one"]
