"""The cluster's state, prompts, pictures, and how a client connects."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ditmesh import telemetry
from ditmesh.client import TLS, Client
from ditmesh.client.cluster import read_cluster
from ditmesh.client.connection import Connection
from ditmesh.content import ContentStore
from ditmesh.errors import InvalidRequest, InvalidTensor, Unavailable, UnknownModel
from ditmesh.telemetry import extract
from ditmesh.v1 import cluster_pb2, cluster_pb2_grpc
from tests.client.conftest import Call
from tests.client.fake import LIMIT, Fake

CLUSTER = cluster_pb2.GetClusterResponse(
    version="1.2.3",
    nodes=[
        cluster_pb2.Node(
            address="a:1", state=cluster_pb2.NODE_STATE_JOINED, rank=0, loaded_models=["flux"]
        ),
        cluster_pb2.Node(address="b:1", state=cluster_pb2.NODE_STATE_DOWN, problem="refused"),
    ],
    group=cluster_pb2.Group(
        state=cluster_pb2.GROUP_STATE_READY, epoch=4, world_size=1, meshes=["ulysses=1"]
    ),
    queue=cluster_pb2.Queue(waiting=2, running=1, bytes_in_flight=10, bytes_limit=100),
    models=[cluster_pb2.Model(name="flux", family="flux", latent_channels=16, on_group=True)],
    local=cluster_pb2.LocalSampler(problem="not configured"),
)


def test_cluster(call: Call, fake: Fake) -> None:
    """The snapshot is plain values; a node that is in no group has no rank."""
    fake.cluster.CopyFrom(CLUSTER)
    snapshot = call("cluster")
    assert [(n.address, n.state, n.rank, n.problem) for n in snapshot.nodes] == [
        ("a:1", "joined", 0, ""),
        ("b:1", "down", None, "refused"),
    ]
    assert (snapshot.group.state, snapshot.group.epoch, snapshot.group.meshes) == (
        "ready",
        4,
        ("ulysses=1",),
    )
    assert (snapshot.queue.waiting, snapshot.queue.bytes_limit) == (2, 100)
    assert snapshot.model("flux").on_group
    assert snapshot.local.problem == "not configured"
    with pytest.raises(UnknownModel, match="'sd3'; this cluster serves: flux"):
        snapshot.model("sd3")


def test_polling_begins_no_trace(address: str, fake: Fake) -> None:
    """Asking for the state is recorded nowhere, unless it is a part of something traced."""
    with Client(address) as client:
        client.cluster()
        with telemetry.span("mine") as mine:
            client.cluster()
    alone, within = (extract(metadata) for metadata in fake.polls)
    assert alone is not None
    assert not alone.sampled
    assert within is not None
    assert within.sampled
    assert f"{within.trace_id:032x}" == mine.trace_id


@pytest.mark.parametrize(
    ("change", "ready"),
    [
        ({}, True),
        ({"group": cluster_pb2.Group(state=cluster_pb2.GROUP_STATE_FORMING)}, False),
        ({"nodes": [], "group": cluster_pb2.Group()}, False),
        (
            {
                "nodes": [],
                "group": cluster_pb2.Group(),
                "local": cluster_pb2.LocalSampler(available=True),
            },
            True,
        ),
    ],
)
def test_ready(change: dict[str, Any], ready: bool) -> None:
    """Ready is a group that can run jobs; without nodes, the local sampler."""
    fields = {field.name: getattr(CLUSTER, field.name) for field, _ in CLUSTER.ListFields()}
    assert read_cluster(cluster_pb2.GetClusterResponse(**{**fields, **change})).ready is ready


def test_model_card() -> None:
    """A card tells how to use a model without knowing its family; what is absent is None."""
    message = cluster_pb2.GetClusterResponse()
    message.models.add(
        name="a",
        latent_channels=2,
        latent_scale=0.5,
        latent_shift=0.25,
        preview_factors=[1, 2, 3, 4, 5, 6],
        preview_bias=[7, 8, 9],
        vae_factor=8,
        default_shift=0.0,
        dimensions={"num_layers": 3},
    )
    message.models.add(name="b", latent_channels=2, latent_scale=1.0)
    known, bare = read_cluster(message).models
    assert known.latent_format.rgb_factors == ((1, 2, 3), (4, 5, 6))
    assert known.latent_format.rgb_bias == (7, 8, 9)
    latent = np.full((1, 2, 1, 1), 2.25, np.float32)
    np.testing.assert_array_equal(known.latent_format.to_model_space(latent), 1.0)
    assert (known.default_shift, known.default_guidance) == (0.0, None)
    assert dict(known.dimensions) == {"num_layers": 3}
    assert bare.latent_format.rgb_factors == ()
    assert bare.default_shift is None


def test_states_of_a_newer_server() -> None:
    """A state that this version does not know is no crash."""
    message = cluster_pb2.GetClusterResponse()
    message.group.state = 77  # type: ignore[assignment]
    assert read_cluster(message).group.state == "unknown"


def test_encoded_prompt_is_not_sent_back(call: Call, fake: Fake) -> None:
    """A prompt's conditioning is named by the hashes under which the server keeps it."""
    encoded = call("encode_prompt", "flux", "a cat")
    assert encoded.truncated_tokens == 2
    assert encoded.conditioning.text.numpy().shape == (1, 5, 4)
    assert encoded.conditioning.guidance == (3.5,)
    call("sample", model="flux", positive=encoded.conditioning, size=(1, 2, 2))
    assert fake.needed[-1] == ()


def test_prompt_of_which_only_hashes_come(call: Call, fake: Fake) -> None:
    """A job names what stayed with the server; once that has forgotten it, the error says so."""
    encoded = call("encode_prompt", "flux", "a cat", hashes_only=True)
    assert (encoded.truncated_tokens, encoded.conditioning.guidance) == (2, (3.5,))
    assert [t.spec.shape for t in encoded.conditioning.wire.values()] == [(1, 5, 4), (1, 2)]
    with pytest.raises(InvalidTensor, match="encode the prompt again"):
        encoded.conditioning.text.numpy()
    call("sample", model="flux", positive=encoded.conditioning, size=(1, 2, 2))
    assert fake.needed[-1] == ()
    fake.store = ContentStore(LIMIT)
    with pytest.raises(InvalidTensor, match="encode the prompt again"):
        call("sample", model="flux", positive=encoded.conditioning, size=(1, 2, 2))


def test_decode(call: Call) -> None:
    """Pictures come as floats, one array a batch."""
    latent = np.random.default_rng(0).random((2, 16, 4, 6)).astype(np.float32)
    pictures = call("decode", "flux", latent)
    np.testing.assert_array_equal(pictures, np.moveaxis(latent[:, :3], 1, -1))


def test_decode_png(call: Call) -> None:
    """Or as files, one each."""
    latent = np.zeros((2, 16, 4, 6), np.float32)
    assert call("decode_png", "flux", latent) == [b"png 0 of flux", b"png 1 of flux"]


def test_options_of_the_channel() -> None:
    """A proxy of the environment is not used for this machine; other addresses may need it."""
    assert ("grpc.enable_http_proxy", 0) in Connection("localhost:1").channel_options
    assert ("grpc.enable_http_proxy", 0) not in Connection("gpu7:1").channel_options


def test_unreadable_certificate(tmp_path: Path) -> None:
    """A file that is not there is an error; half an identity is refused."""
    with pytest.raises(InvalidRequest, match="cannot read"):
        Client("h:1", tls=TLS(ca=tmp_path / "ca.pem"))
    with pytest.raises(InvalidRequest, match="needs its key"):
        Client("h:1", tls=TLS(certificate=tmp_path / "c.pem"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
def test_mutual_tls(tmp_path: Path, fake: Fake) -> None:
    """With its identity a client is let in; without, it is not."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", "/CN=gpu7", "-addext", "subjectAltName=DNS:gpu7"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    pem = certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem)], pem, True)
    server = grpc.server(ThreadPoolExecutor(2))
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(fake, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    fake.cluster.version = "9"
    with Client(f"127.0.0.1:{port}", tls=TLS(certificate, certificate, key, "gpu7")) as client:
        assert client.cluster().version == "9"
    with (
        Client(f"127.0.0.1:{port}", tls=TLS(certificate, name="gpu7")) as client,
        pytest.raises(Unavailable),
    ):
        client.cluster()
    server.stop(None).wait()


def test_import_is_light() -> None:
    """The client brings no torch, and little beyond grpc, protobuf and numpy."""
    program = (
        "import time, sys\n"
        "times = [time.process_time()]\n"
        "import grpc.aio, numpy, google.protobuf.message_factory\n"
        "times.append(time.process_time())\n"
        "import ditmesh.client\n"
        "times.append(time.process_time())\n"
        "print((times[2] - times[1]) / (times[1] - times[0]))\n"
        "heavy = {'torch', 'scipy', 'diffusers', 'xfuser', 'safetensors', 'opentelemetry.sdk'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    ratio, heavy = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert heavy == "[]"
    assert float(ratio) < 1.5
