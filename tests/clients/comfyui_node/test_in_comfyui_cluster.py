"""The pack in a real ComfyUI: what a dispatcher shows, and on what terms its cluster samples."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditmesh.client import TLS, Client, Conditioning
from tests.e2e.cluster import Cluster

from .comfyui import ComfyUI
from .conftest import TOKEN, TOKEN_VARIABLE
from .listening import Listener, client_id
from .prompts import EXACT, node, report, sampling

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = {"time_limit": 0.5}
LONG = {"steps": 400}
"""Too many steps for that time."""


def listed(comfyui: ComfyUI, dispatcher: dict[str, Any]) -> str:
    """What the dispatcher shows of its cluster."""
    prompt = sampling("XDiTKSampler", "local", steps=1, dispatcher=dispatcher)
    (shown,) = comfyui.run(prompt)["dispatcher"]["xdit"]
    return str(shown["cluster"])


def test_the_dispatcher_lists_what_the_cluster_has(comfyui: ComfyUI, cluster: Cluster) -> None:
    """The group, each model and where it runs."""
    first, *models = listed(comfyui, {"address": cluster.address}).splitlines()
    assert first.startswith(f"{cluster.address}: 2 CPU processes ready (ulysses=2")
    assert {line.split()[0] for line in models} >= {"tiny-flux", "local-flux", "tiny-schnell"}
    (golden,) = [line for line in models if line.startswith("tiny-flux ")]
    assert golden == "tiny-flux (flux, 3,871,744 parameters; group, coordinator)"


def test_progress_previews_and_who_made_it(comfyui: ComfyUI, cluster: Cluster) -> None:
    """Each step moves the bar and shows the latent; at last the node says who sampled it."""
    client = client_id()
    with Listener(comfyui.port, client) as browser:
        comfyui.start(sampling("XDiTKSampler", "remote", steps=7, seed=11), client)
        told = list(browser.until_idle())
    steps = [each.data["value"] for each in told if each.kind == "progress"]
    assert steps == sorted(steps)
    assert {1, 4, 7} <= set(steps)
    assert sum(each.kind == "preview" for each in told) >= 5
    texts = [each.data[1] for each in told if each.kind == "node_text"]
    assert texts[-1].startswith("2 ranks (ulysses=2")
    assert ": 7 steps in " in texts[-1]
    assert "\ntrace " in texts[-1]


def test_the_place_in_the_queue_is_shown(comfyui: ComfyUI, cluster: Cluster) -> None:
    """While others are served, and its end."""
    browser_id = client_id()
    nothing = Conditioning(np.zeros((1, 4, 64), np.float32), np.zeros((1, 32), np.float32))
    other = {"model": "tiny-flux", "positive": nothing, "size": (1, 16, 16), "steps": 2000}
    with Client(cluster.address) as client, Listener(comfyui.port, browser_id) as browser:
        jobs = [client.start(**other), client.start(**other)]
        cluster.wait(lambda: cluster.snapshot().queue.waiting > 0, "a queue")
        comfyui.start(sampling("XDiTKSampler", "remote", steps=3, seed=12), browser_id)
        waiting, texts = True, []
        for each in browser.until_idle():
            if each.kind == "node_text":
                texts.append(each.data[1])
                if waiting and "before this one" in texts[-1]:
                    waiting = False
                    time.sleep(0.5)  # long enough to be worth telling
                    for job in jobs:
                        job.cancel()
    assert any("2 jobs before this one" in text for text in texts), texts
    assert "waited " in texts[-1]


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator without nodes: its own sampler is all it has."""
    with Cluster(tmp_path_factory.mktemp("lone"), ranks=0) as running:
        yield running


@pytest.mark.parametrize(
    ("fallback", "who"),
    [("allow", "local"), ("cluster only", "local"), ("group or ComfyUI", "comfyui")],
)
def test_the_fallback_policy_says_who_may_sample(
    comfyui: ComfyUI, lone: Cluster, fallback: str, who: str
) -> None:
    """Without a group: the coordinator's own sampler, or ComfyUI's, as the dispatcher allows."""
    terms = {"address": lone.address, "fallback": fallback}
    found = report(comfyui.run(sampling("XDiTKSampler", "local", dispatcher=terms)))
    if who == "comfyui":
        assert found["sampled_by"] == "comfyui"
        assert found["reason"]
    else:
        assert [part["executor"] for part in found["segments"]] == [who]
    stepwise = sampling("XDiTKSampler", "local", sampler="gradient_estimation", dispatcher=terms)
    found = report(comfyui.run(stepwise))
    assert found["sampled_by"] == ("comfyui" if who == "comfyui" else "steps")


@pytest.mark.parametrize("sampler", ["euler", "gradient_estimation"])
def test_nobody_but_the_group_may_be_demanded(
    comfyui: ComfyUI, lone: Cluster, sampler: str
) -> None:
    """Then a missing group is an error that says so, and what would help."""
    terms = {"address": lone.address, "fallback": "group only"}
    prompt = sampling("XDiTKSampler", "local", sampler=sampler, dispatcher=terms)
    error = comfyui.error(comfyui.start(prompt))
    assert "fallback is 'group only'" in error


@pytest.mark.parametrize("sampler", ["euler", "gradient_estimation"])
def test_a_picture_has_a_time_limit(comfyui: ComfyUI, lone: Cluster, sampler: str) -> None:
    """All its steps together; then ComfyUI takes over, or it is an error."""
    terms = {"address": lone.address, **SHORT}
    prompt = sampling("XDiTKSampler", "local", sampler=sampler, **LONG, dispatcher=terms)
    assert report(comfyui.run(prompt))["sampled_by"] == "comfyui"
    terms["fallback"] = "cluster only"
    prompt = sampling("XDiTKSampler", "local", sampler=sampler, **LONG, dispatcher=terms)
    error = comfyui.error(comfyui.start(prompt))
    assert "time limit of 0.5 s" in error or "the job has 0." in error


def test_a_model_of_one_cluster_is_recognised_on_another(
    comfyui: ComfyUI, cluster: Cluster, lone: Cluster
) -> None:
    """A sampler's own dispatcher decides where; there the weights count, not the name."""
    prompt = sampling("XDiTKSampler", "remote", dispatcher={"address": lone.address})
    prompt["model"]["inputs"] = {"model_name": "tiny-flux"}
    found = report(comfyui.run(prompt))
    assert [part["executor"] for part in found["segments"]] == ["local"]
    prompt["sample"]["inputs"]["sampler_name"] = "gradient_estimation"
    found = report(comfyui.run(prompt))
    assert (found["sampled_by"], found["executor"]) == ("steps", "local")
    prompt["model"]["inputs"] = {"model_name": "tiny-schnell"}
    assert "does not have this MODEL's weights" in comfyui.error(comfyui.start(prompt))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate that is its own authority, for both sides; its key lies beside it."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "1", "-subj", "/CN=ditmesh", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Cluster]:
    """A coordinator that speaks mutual TLS only, and only with who has a token."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = folder / "tokens"
    tokens.write_text(f"artist {TOKEN}\n")
    tokens.chmod(0o600)
    key = certificate.with_name("key.pem")
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-ca", str(certificate))
    made = Cluster(folder, ranks=0, options=(*options, "--token-file", str(tokens)))
    made.client.close()
    tls = TLS(ca=certificate, certificate=certificate, key=key)
    made.client = Client(made.address, tls=tls, token=TOKEN)
    with made:
        yield made


def terms_of(guarded: Cluster, certificate: Path) -> dict[str, Any]:
    return {
        "address": guarded.address,
        "tls": True,
        "ca_file": str(certificate),
        "certificate_file": str(certificate),
        "key_file": str(certificate.with_name("key.pem")),
        "token_variable": TOKEN_VARIABLE,
    }


def test_tls_and_token_let_a_dispatcher_in(
    comfyui: ComfyUI, guarded: Cluster, certificate: Path
) -> None:
    """Whole jobs, single steps and the list of models; the token is in no output."""
    terms = terms_of(guarded, certificate)
    assert "tiny-flux" in listed(comfyui, terms)
    whole = comfyui.run(sampling("XDiTKSampler", "remote", dispatcher=terms))
    assert report(whole)["sampled_by"] == "cluster"
    stock = comfyui.run(sampling("KSampler", "remote", dispatcher=terms))
    theirs = comfyui.run(sampling("KSampler", "local"))
    for made in (whole, stock):
        assert float(np.abs(comfyui.latent(made) - comfyui.latent(theirs)).max()) <= EXACT
    assert TOKEN not in comfyui.text("/history") + comfyui.log.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_variable": "TEST_NO_TOKEN"}, "token"),
        ({"certificate_file": "", "key_file": ""}, "Cannot reach the coordinator"),
        ({"tls": False}, "Cannot reach the coordinator"),
        ({"ca_file": "/nowhere/ca.pem"}, "cannot read /nowhere/ca.pem"),
        ({"key_file": ""}, "needs its key"),
    ],
)
def test_who_is_not_let_in_is_told_why(
    comfyui: ComfyUI, guarded: Cluster, certificate: Path, change: dict[str, Any], words: str
) -> None:
    """By the dispatcher and by the samplers; ComfyUI takes over where it has the weights."""
    terms = {**terms_of(guarded, certificate), **change}
    assert words in listed(comfyui, terms)
    found = report(comfyui.run(sampling("XDiTKSampler", "local", steps=2, dispatcher=terms)))
    assert found["sampled_by"] == "comfyui"
    assert words in found["reason"]
    remote = sampling("XDiTKSampler", "remote", steps=2, dispatcher=terms)
    assert words in comfyui.error(comfyui.start(remote))


def test_prompts_need_a_model_that_has_text_encoders(comfyui: ComfyUI) -> None:
    """The error says which models could do it."""
    prompt = sampling("XDiTKSampler", "remote")
    inputs = {"text": "a girl", "guidance": 3.5, "model_name": "tiny-flux"}
    prompt["positive"] = node("XDiTEncodePrompt", **inputs)
    error = comfyui.error(comfyui.start(prompt))
    assert "no model 'tiny-flux' that can encode prompts and decode pictures" in error
    assert "there are: pixel-portraits" in error
