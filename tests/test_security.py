"""Who is let in, and that renewed certificates and tokens need no restart."""

from __future__ import annotations

import logging
import shutil
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from ditmesh.errors import Unauthenticated
from ditmesh.reloading import Reloading
from ditmesh.security import TlsFiles, Tokens, UnsafeListener, is_local, require_safe
from tests.certificates import Authority

ECHO = "/test/Echo"


class Echo(grpc.GenericRpcHandler):
    """Gives back each message of a stream."""

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)


@contextmanager
def listening(files: TlsFiles) -> Iterator[int]:
    """The port of a server with those files."""
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((Echo(),))
        port = server.add_secure_port("127.0.0.1:0", files.server_credentials())
        server.start()
        yield port
        server.stop(None).wait()


def channel(port: int, files: TlsFiles) -> grpc.Channel:
    """A connection of its own."""
    credentials = files.channel_credentials()
    assert credentials is not None
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"localhost:{port}", credentials.current(), options)


def echo(port: int, files: TlsFiles) -> bool:
    """Whether a new connection is let in."""
    with channel(port, files) as connected:
        try:
            return list(connected.stream_stream(ECHO)(iter([b"x"]), timeout=20)) == [b"x"]
        except grpc.RpcError as refused:
            if refused.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


def shown(port: int) -> bytes:
    """The certificate that the server shows to whoever comes now."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


def held(files: TlsFiles) -> bytes:
    """The certificate in the file."""
    assert files.certificate is not None
    return ssl.PEM_cert_to_DER_cert(files.certificate.read_text())


@contextmanager
def ending(over: threading.Event) -> Iterator[None]:
    """Threads that wait for it end, however the block is left."""
    try:
        yield
    finally:
        over.set()


def test_certificates_are_renewed_under_load(tmp_path: Path) -> None:
    """Who comes after a renewal meets the new certificate; no call fails, no stream breaks."""
    authority = Authority(tmp_path / "authority")
    server = authority.issue(tmp_path / "server", "server").files
    client = authority.issue(tmp_path / "client", "client").files
    over, answered = threading.Event(), threading.Semaphore(0)

    def call_on_new_connections() -> list[bool]:
        answers = []
        while not over.is_set():
            answers.append(echo(port, client))
            answered.release()
        return answers

    def beat() -> Iterator[bytes]:
        while not over.wait(0.01):
            yield b"beat"

    with listening(server) as port, ThreadPoolExecutor(4) as callers, ending(over):
        calls = [callers.submit(call_on_new_connections) for _ in range(3)]
        with channel(port, client) as lasting:
            stream = lasting.stream_stream(ECHO)(beat())
            seen = set()
            for _ in range(4):
                assert shown(port) == held(server)
                seen.add(held(server))
                assert [next(stream) for _ in range(5)] == [b"beat"] * 5
                assert all(answered.acquire(timeout=20) for _ in range(6))
                authority.issue(tmp_path / "server", "server")
            over.set()
            assert set(stream) <= {b"beat"}
    assert len(seen) == 4
    assert all(all(call.result()) for call in calls)


def test_half_a_pair_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While certificate and key do not fit, the old pair goes on, and the log says why once."""
    authority = Authority(tmp_path / "authority")
    old = authority.issue(tmp_path / "old", "server").files
    new = authority.issue(tmp_path / "new", "server").files
    used = TlsFiles(tmp_path / "crt", tmp_path / "key", old.authority)
    for source, target in ((old.certificate, used.certificate), (old.key, used.key)):
        shutil.copyfile(source, target)  # type: ignore[arg-type]
    with listening(used) as port, caplog.at_level(logging.ERROR):
        shutil.copyfile(new.certificate, used.certificate)  # type: ignore[arg-type]
        assert [shown(port), shown(port)] == [held(old)] * 2
        assert len(caplog.records) == 1
        assert "not of use" in caplog.text
        shutil.copyfile(new.key, used.key)  # type: ignore[arg-type]
        assert shown(port) == held(new)
        assert echo(port, new)


def test_an_authority_is_replaced_by_way_of_both(tmp_path: Path) -> None:
    """Clients of a new authority are let in once the server's file names it, the old no more."""
    first, second = Authority(tmp_path / "1"), Authority(tmp_path / "2")
    server = first.issue(tmp_path / "server", "server").files
    old = first.issue(tmp_path / "old", "client", second).files
    new = second.issue(tmp_path / "new", "client", first).files
    with listening(server) as port:
        assert [echo(port, old), echo(port, new)] == [True, False]
        first.issue(tmp_path / "server", "server", second)
        assert [echo(port, old), echo(port, new)] == [True, True]
        second.issue(tmp_path / "server", "server")
        assert [echo(port, old), echo(port, new)] == [False, True]


def test_unusable_files_stop_the_start(tmp_path: Path) -> None:
    """A key that is another's, a missing file, an authority that is none."""
    authority = Authority(tmp_path / "authority")
    files = authority.issue(tmp_path / "a", "server").files
    other = authority.issue(tmp_path / "b", "server").files
    nothing = tmp_path / "nothing"
    for wrong in (
        replace(files, key=other.key),
        replace(files, certificate=nothing),
        replace(files, authority=files.key),
    ):
        with pytest.raises(OSError, match=r"KEY_VALUES_MISMATCH|No such file|NO_CERTIFICATE"):
            wrong.server_credentials()
    assert TlsFiles().server_credentials() is None
    assert TlsFiles().channel_credentials() is None


def test_channel_credentials_are_new_after_a_renewal_only(tmp_path: Path) -> None:
    """By identity, so that whoever holds a channel sees whether to make another."""
    authority = Authority(tmp_path / "authority")
    credentials = authority.issue(tmp_path / "c", "client").files.channel_credentials()
    assert credentials is not None
    first = credentials.current()
    assert credentials.current() is first
    authority.issue(tmp_path / "c", "client")
    second = credentials.current()
    assert second is not first
    assert credentials.current() is second


def metadata(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def test_tokens_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new token holds at once, a withdrawn one no more; a damaged file leaves the last ones."""
    file = tmp_path / "tokens"
    file.write_text("# who\nada s3cret\n\nbob hunter2\n")
    tokens = Tokens.reloading(file)
    assert tokens.current().identify(metadata("s3cret")) == "ada"
    file.write_text("ada renewed\n")
    assert tokens.current().identify(metadata("renewed")) == "ada"
    for withdrawn in ("s3cret", "hunter2"):
        with pytest.raises(Unauthenticated):
            tokens.current().identify(metadata(withdrawn))
    for damaged in ("", "ada one two three\n", "ada renewed\nada twice\n"):
        file.write_text(damaged)
        assert tokens.current().identify(metadata("renewed")) == "ada"
    file.unlink()
    assert tokens.current().identify(metadata("renewed")) == "ada"
    assert not any(secret in caplog.text for secret in ("renewed", "twice", "three"))


def test_tokens_need_their_scheme() -> None:
    """Only "Bearer"; no token, an empty one and bytes are refused."""
    tokens = Tokens({"ada": "s3cret"})
    wrong: list[list[tuple[str, str | bytes]]] = [
        [],
        [("authorization", "s3cret")],
        [("authorization", "Basic s3cret")],
        [("authorization", "Bearer ")],
        [("authorization", b"Bearer s3cret")],
        [("x-authorization", "Bearer s3cret")],
    ]
    for given in wrong:
        with pytest.raises(Unauthenticated):
            tokens.identify(given)
    assert tokens.identify([("Authorization", "bearer s3cret")]) == "ada"


def test_a_value_that_never_was_of_use_is_an_error(tmp_path: Path) -> None:
    """What reading raises at the start is not swallowed."""
    with pytest.raises(FileNotFoundError):
        Reloading([tmp_path / "none"], (tmp_path / "none").read_bytes)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/tmp/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_only_loopback_needs_no_protection(address: str, local: bool) -> None:
    """Any other address needs TLS, tokens or the operator's word."""
    assert is_local(address) is local
    require_safe(address, protected=True, insecure=False)
    require_safe(address, protected=False, insecure=True)
    if local:
        require_safe(address, protected=False, insecure=False)
    else:
        with pytest.raises(UnsafeListener, match="--insecure"):
            require_safe(address, protected=False, insecure=False)
