"""Who may listen where, who may call whom: TLS files, bearer tokens, the loopback rule.

Certificates, authorities and tokens are read again when their files change. What is connected
stays connected; whoever comes next meets the new ones.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from ditmesh.errors import Unauthenticated
from ditmesh.reloading import Reloading


class UnsafeListener(ValueError):
    """An address that other machines can reach, without TLS or tokens."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one process: its certificate and key, and the authority of its peers.

    A server with an authority demands a certificate of its clients (mutual TLS).
    """

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For one listener; None without a certificate. Raises OSError for files of no use."""
        if self.certificate is None or self.key is None:
            return None
        files = Reloading(self._files(), self._read)
        used = files.current()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            latest = files.current()
            if latest is used:
                return None
            used = latest
            return _configuration(latest)

        # gRPC asks before each handshake; its stubs do not know that None keeps what there is.
        fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], renewed)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(used), fetcher, require_client_authentication=self.authority is not None
        )

    def channel_credentials(self) -> Reloading[grpc.ChannelCredentials] | None:
        """To call a server that the authority vouches for; None without an authority.

        Raises OSError for files of no use. A channel keeps those that it was made with.
        """
        if self.authority is None:
            return None

        def read() -> grpc.ChannelCredentials:
            pem = self._read()
            return grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)

        return Reloading(self._files(), read)

    def _files(self) -> list[Path]:
        return [file for file in (self.certificate, self.key, self.authority) if file is not None]

    def _read(self) -> _Pem:
        """Raises OSError (of which SSLError is one) for files that are missing or do not fit."""
        checked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.certificate is not None and self.key is not None:
            # An encrypted key is refused; without the empty password OpenSSL would ask a terminal.
            checked.load_cert_chain(self.certificate, self.key, password="")
        if self.authority is not None:
            checked.load_verify_locations(self.authority)
        files = (self.key, self.certificate, self.authority)
        return _Pem(*(None if file is None else file.read_bytes() for file in files))


@dataclass(frozen=True, eq=False)
class _Pem:
    key: bytes | None
    certificate: bytes | None
    authority: bytes | None


def _configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key or b"", pem.certificate or b"")], root_certificates=pem.authority
    )


class Tokens:
    """Bearer tokens, each with the name of the client that it identifies."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens`: name -> token."""
        # Digests have one length, so that a comparison tells nothing of the token's.
        self._digests = {name: _digest(token) for name, token in tokens.items()}

    @classmethod
    def reloading(cls, path: Path) -> Reloading[Tokens]:
        """As `read`, and again when the file changes."""
        return Reloading([path], lambda: cls.read(path))

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Lines of "name token"; blank lines and those that begin with # do not count.

        Raises OSError for a file that cannot be read and ValueError, without the token in it,
        for a line that is something else.
        """
        tokens: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = line.split()
            if len(words) != 2 or words[0] in tokens:
                raise ValueError(f"{path}, line {number}: a new name and its token are needed")
            tokens[words[0]] = words[1]
        if not tokens:
            raise ValueError(f"{path} holds no token")
        return cls(tokens)

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """The name of the caller. Raises Unauthenticated without a valid token.

        Every token is compared, in constant time: how long it takes tells nothing.
        """
        given = next((value for key, value in metadata if key.lower() == "authorization"), "")
        scheme, _, token = (given if isinstance(given, str) else "").partition(" ")
        found = ""
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, _digest(token.strip())):
                found = name
        if not found or scheme.lower() != "bearer":
            raise Unauthenticated('send a valid token as metadata "authorization: Bearer <token>"')
        return found


def require_safe(address: str, *, protected: bool, insecure: bool) -> None:
    """Refuse to listen beyond this machine without protection. Raises UnsafeListener.

    `protected`: by TLS or tokens. `insecure`: the operator has said that the network is safe.
    """
    if protected or insecure or is_local(address):
        return
    raise UnsafeListener(
        f"{address} can be reached from other machines, and neither TLS nor tokens are set: "
        "give them, listen on 127.0.0.1, or say --insecure if the network itself is safe"
    )


def is_local(address: str) -> bool:
    """Whether only this machine can reach a listener at host:port or unix:path."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
