"""Who may listen where, who may call whom: TLS files, bearer tokens, the loopback rule."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from ditmesh.errors import Unauthenticated


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
        """None without a certificate. Raises OSError for a file that cannot be read."""
        if self.certificate is None or self.key is None:
            return None
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        authority = self.authority.read_bytes() if self.authority is not None else None
        return grpc.ssl_server_credentials(
            [pair], root_certificates=authority, require_client_auth=authority is not None
        )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """To call a server that the authority vouches for; None without an authority."""
        if self.authority is None:
            return None
        return grpc.ssl_channel_credentials(
            self.authority.read_bytes(),
            self.key.read_bytes() if self.key is not None else None,
            self.certificate.read_bytes() if self.certificate is not None else None,
        )


class Tokens:
    """Bearer tokens, each with the name of the client that it identifies."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens`: name -> token."""
        # Digests have one length, so that a comparison tells nothing of the token's.
        self._digests = {name: _digest(token) for name, token in tokens.items()}

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
