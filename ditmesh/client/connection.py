"""Where a client connects to, and how: address, encryption, who it is, what it tolerates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc

from ditmesh import rpc_status
from ditmesh.client.retry import RetryPolicy
from ditmesh.errors import InvalidRequest
from ditmesh.telemetry import current_metadata
from ditmesh.telemetry.propagation import Metadata, TraceContext, inject

DEFAULT_ADDRESS: Final = "localhost:50050"
"""Where a coordinator on the same machine listens."""

_MIB: Final = 1 << 20
_LOOPBACK: Final = ("localhost:", "127.", "[::1]:", "unix:")
_OPTIONS: Final = (
    # Chunks are small; a preview of a large batch comes in one message.
    ("grpc.max_receive_message_length", 64 * _MIB),
    ("grpc.max_send_message_length", 8 * _MIB),
    # A dead connection is noticed within 30 s, also while a job waits in the queue.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A job is taken up again only as fast as the channel connects again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True)
class TLS:
    """Encryption, and with `certificate` and `key` the client's own identity (mutual TLS).

    Paths of PEM files. `ca`: who may sign the server's certificate; None: the system's. `name`:
    the name in the server's certificate, if it is not the one in the address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC takes them. Raises InvalidRequest for files that cannot be read."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("a client certificate needs its key, and the other way round")
        try:
            ca, certificate, key = (
                None if path is None else path.read_bytes()
                for path in (self.ca, self.certificate, self.key)
            )
        except OSError as error:
            raise InvalidRequest(f"cannot read {error.filename}: {error.strerror}") from error
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True)
class Connection:
    """All that blocking and asyncio clients are told alike.

    address: host:port of the coordinator, or unix:path.
    tls: None: not encrypted.
    token: sent with every call as "authorization: Bearer <token>"; readable by everybody on the
        way unless `tls` is set.
    timeout_s: seconds for calls that are no jobs: `cluster`, `encode_prompt`, `decode`.
    retry: see `RetryPolicy`.
    """

    address: str = DEFAULT_ADDRESS
    tls: TLS | None = None
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def channel_options(self) -> list[tuple[str, Any]]:
        """Arguments of the channel."""
        options: list[tuple[str, Any]] = [*_OPTIONS]
        if self.address.startswith(_LOOPBACK):
            # A proxy that the environment names does not lead to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.name:
            options.append(("grpc.ssl_target_name_override", self.tls.name))
        return options

    def metadata(self, *, begins_trace: bool = True) -> Metadata:
        """What goes along with a call: the current trace, and who is calling.

        Outside any trace the server begins one, unless `begins_trace` is False.
        """
        traced = current_metadata()
        if not traced and not begins_trace:
            traced = inject((), replace(TraceContext.new_root(), sampled=False))
        token = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*traced, *token)


@contextmanager
def translated() -> Iterator[None]:
    """Failures of gRPC as errors of ditmesh."""
    try:
        yield
    except grpc.RpcError as failure:
        raise rpc_status.from_rpc_error(failure) from failure
