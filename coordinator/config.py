"""The coordinator's configuration: one frozen object, read once at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ditmesh.security import TlsFiles
from ditmesh.telemetry import TelemetryConfig

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What the coordinator takes on. Bytes, pictures and counts; nothing is unbounded."""

    request_bytes: int = 256 * MIB
    """Tensors that one request may declare."""
    in_flight_bytes: int = 1024 * MIB
    """Tensors held for all jobs together."""
    content_bytes: int = 256 * MIB
    """Tensors kept under their hash for later jobs."""
    journal_bytes: int = 1024 * MIB
    """Tensors of jobs in the journal; further jobs are not journalled."""
    queued_jobs: int = 64
    """Jobs that may wait, or whose inputs are still coming."""
    local_queued_jobs: int = 16
    """Jobs that may wait for the local sampler; it is slow, and the caller may know better."""
    kept_jobs: int = 1024
    """Jobs that have ended and are remembered for whoever comes back."""
    latent_cells: int = 1 << 22
    """Batch times rows times columns of a latent: 2**22 is 16 pictures of 4096x4096."""
    text_tokens: int = 8192
    """Tokens of one conditioning."""
    prompt_characters: int = 100_000
    """Characters of a prompt; what the tokenizer makes of them may be cut shorter."""
    input_timeout_s: float = 60.0
    """Seconds of silence after which a stream that still owes tensors is given up."""
    input_bytes_per_s: float = 16_384.0
    """A client that sends its inputs more slowly loses its place when others need it."""
    output_timeout_s: float = 60.0
    """Seconds after which a stream whose client does not read is given up."""


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    reattach: float = 10.0
    """How long a job whose stream broke runs on without a client."""
    keep_result: float = 300.0
    """How long a finished result waits for whoever comes back for it."""
    settle: float = 10.0
    """How long a first group waits for nodes that have not appeared."""
    regroup_wait: float = 5.0
    """How long a job waits for the group to form again before it falls back."""
    silence: float = 5.0
    """After how long a node that says nothing counts as lost; it speaks every second."""
    collective_timeout: float = 60.0
    """After how long a collective that does not end is a failure."""
    join_timeout: float = 60.0
    """How long nodes may take to form a group."""
    grace: float = 30.0
    """How long running jobs may take to end after SIGTERM."""


@dataclass(frozen=True)
class CoordinatorConfig:
    """Everything the coordinator is told."""

    listen: str = "127.0.0.1:50050"
    """host:port of the public services."""
    nodes: tuple[str, ...] = ()
    """The nodes, as `addresses.expand` takes them."""
    mesh: str = "auto"
    """Degrees of the main mesh, such as "ulysses=4,ring=2"; auto: Ulysses as far as it goes."""
    cfg_split: bool = False
    """Whether jobs with guidance run one branch on each half of the ranks."""
    min_ranks: int = 1
    """The smallest group that is worth forming."""
    rendezvous_host: str = "127.0.0.1"
    """Address at which nodes reach the rendezvous store."""
    rendezvous_port: int = 0
    """Its port; 0 chooses a free one."""
    local_address: str = ""
    """gRPC address of the local sampler; empty: there is none."""
    preload: tuple[str, ...] = ()
    """Models that nodes load when the group forms."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    """Of the public services; with an authority, clients need a certificate."""
    node_tls: TlsFiles = field(default_factory=TlsFiles)
    """To call nodes; without an authority they are called unencrypted."""
    tokens: Path | None = None
    """File of bearer tokens that clients need; None: they need none."""
    insecure: bool = False
    """Whether to listen beyond this machine without TLS or tokens."""
    health: str = ""
    """host:port at which health alone is served, unencrypted, for probes; empty: nowhere."""
    journal: Path | None = None
    """File in which jobs survive this process; None: they do not."""
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)
    telemetry: TelemetryConfig = field(default_factory=lambda: TelemetryConfig("coordinator"))
    log_level: str = "INFO"
